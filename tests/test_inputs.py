"Scans from files, folders, archives, volumes and buckets: what is damaged costs a row, never the run"
import builtins
import io
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from oct_classify import core
from oct_classify.core import OctError
from oct_classify.inference.inputs import scans_of
from oct_classify.data.prepare import placed

pytestmark = pytest.mark.xdist_group('inputs')  # one process for all: what the fixtures make is made once


@pytest.fixture(scope='module')
def fuzz(script): return script('bench/fuzz.py')


@pytest.fixture(scope='module')
def sound(fuzz): return fuzz.sound_scans()


def put(folder, sound, kind, name=None):
    p = folder/(name or sound[kind][0])
    p.write_bytes(sound[kind][1])
    return p


def test_import_is_light():
    heavy = ('torch', 'timm', 'fastai', 'sklearn', 'matplotlib', 'pydicom', 'fsspec', 'oct_converter', 'eyepy')
    code = f'import sys, oct_classify.inference.inputs; print([m for m in {heavy} if m in sys.modules])'
    assert (
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    )


@pytest.mark.filterwarnings('ignore')
def test_two_hundred_damaged_files(fuzz, tmp_path):
    "Pixels or one sentence; anything else raises here"
    seen = set()
    for _, kind, at in fuzz.jobs(tmp_path, 217, 7, fuzz.tiny_bundle(tmp_path/'bundle', False)):
        fuzz.read(at)
        fuzz.clear(at)
        seen.add(kind)
    assert {'jpeg grey', 'zip', 'csv', 'vol', 'config.json', 'model.safetensors'} <= seen


def test_what_is_sound_is_answered(fuzz, sound, tmp_path):
    for k, (name, data) in sound.items():
        if k == 'csv': continue
        (at := tmp_path/k).mkdir()
        (at/name).write_bytes(data)
        got = fuzz.read_scan(at/name)
        assert got['answered'] and not got['refused'], k


def test_pictures_are_listed_without_being_opened(tmp_path, monkeypatch):
    for i in range(20): (tmp_path/f'{i}.jpg').write_bytes(b'x')

    def shut(*a, **k): raise AssertionError(f'opened {a}')
    with monkeypatch.context() as m:
        m.setattr(builtins, 'open', shut)
        m.setattr(io, 'open', shut)
        assert len(scans_of(tmp_path)) == 20


def test_a_zip_is_not_unpacked(sound, tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for n in ('../../up.png', '/abs.png', 'C:\\x.png', 'CNV/ok.png'): z.writestr(n, sound['png 8'][1])
        z.writestr('bad.png', b'no picture')
    scans = scans_of(tmp_path/'a.zip')
    assert len(scans) == 5 and sum(isinstance(s.image(), bytes) for s in scans) == 5
    with pytest.raises(OctError): placed(scans[-1].image(), 64)
    assert [p.name for p in tmp_path.iterdir()] == ['a.zip'] and not (tmp_path.parent.parent/'up.png').exists()


def test_an_encrypted_member_costs_its_row(sound, tmp_path):
    p = tmp_path/'a.zip'
    with zipfile.ZipFile(p, 'w') as z:
        for n in ('a.png', 'b.png'): z.writestr(n, sound['png 8'][1])
    b = bytearray(p.read_bytes())
    k = b.find(b'PK\x01\x02')
    b[k+8] |= 1 # the flag of the first entry in the directory
    p.write_bytes(b)
    first, second = scans_of(p)
    with pytest.raises(OctError, match='encrypted'): first.image()
    assert placed(second.image(), 64)[0].shape == (64, 64)


def test_a_hundred_volumes_hold_two(sound, tmp_path, monkeypatch):
    pytest.importorskip('pydicom')
    for i in range(100): put(tmp_path, sound, 'dicom rle 3', f'{i:03d}.dcm')
    scans = scans_of(tmp_path)
    assert len(scans) == 300
    most = 0
    for s in scans:
        s.image()
        most = max(most, len(s.holder.recent.contents))
    assert most == 2


def test_threads_read_the_same(sound, tmp_path):
    pytest.importorskip('pydicom')
    for k in ('vol', 'e2e', 'fda', 'fds', 'img', 'zip', 'dicom j2k 3', 'dicom rle 3'):
        (tmp_path/k).mkdir()
        put(tmp_path/k, sound, k)
    one = [placed(s.image(), 64)[0] for s in scans_of(tmp_path)]
    scans = scans_of(tmp_path)*8
    np.random.default_rng(0).shuffle(order := list(range(len(scans))))
    with ThreadPoolExecutor(8) as ex: many = list(ex.map(lambda i: placed(scans[i].image(), 64)[0], order))
    for i, px in zip(order, many): assert (px == one[i % len(one)]).all()
    assert threading.active_count() < 30


@pytest.mark.skipif(sys.platform != 'linux', reason='only here may a name be any bytes')
def test_a_name_that_is_not_utf8(sound, tmp_path):
    import os
    (tmp_path/os.fsdecode(b'Gr\xf6\xdfe.png')).write_bytes(sound['png 8'][1])
    s, = scans_of(tmp_path)
    s.name.encode() # can be stored and printed
    assert placed(s.image(), 64)[0].shape == (64, 64)


def test_limits_hold_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.new('1', (20_000, 20_000)).save(tmp_path/'a.png')
    with pytest.raises(OctError, match='million'): placed(scans_of(tmp_path/'a.png')[0].image(), 64)
    monkeypatch.setattr(core, 'MAX_FILE', 1000)
    with pytest.raises(OctError, match='at most'): scans_of(tmp_path/'a.png')[0].image()


def test_without_the_extra(sound, tmp_path, monkeypatch):
    put(tmp_path, sound, 'dicom plain 1') if 'dicom plain 1' in sound else (tmp_path / 'x.dcm').write_bytes(
        bytes(128) + b'DICM'
    )
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    (s,) = scans_of(tmp_path)
    with pytest.raises(OctError, match=r"pip install 'oct_classify\[formats\]'"):
        s.image()


def test_explain_takes_what_predict_takes(sound, tmp_path, cli):
    "DICOM, a zip with a volume in it, a list: a picture per scan, under a name that is safe"
    pytest.importorskip('pydicom')
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.core import CLASSES
    from oct_classify.training.network import network

    b = save_bundle(
        tmp_path / 'b',
        network('resnet10t', size=64),
        dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole'),
    )
    for k in ('zip', 'png 8'):
        put(tmp_path, sound, k)
    put(tmp_path, sound, 'dicom rle 1', 'a study.dcm')
    (tmp_path / 'list.csv').write_text('path\nx.png\nnowhere.png\n')
    code, _, err = cli(
        'explain', b, *(tmp_path / n for n in ('a study.dcm', 'x.zip', 'list.csv')), '--out', tmp_path / 'maps'
    )
    assert code == 0 and 'nowhere.png: The file can\'t be opened' in err
    pictures = ['001-a_study.png', '002-a.png', '003-b.png', '004-c_0.png', '005-x.png']
    assert sorted(p.name for p in (tmp_path / 'maps').iterdir()) == [*pictures, 'index.html']
    html = (tmp_path / 'maps/index.html').read_text()
    assert all(f'src="{n}"' in html for n in pictures) and 'a study.dcm' in html and 'c.vol#0' in html


def rows(scans):
    "{name: why} of what can't be read, '' for what can"
    def why(s):
        try: s.image()
        except OctError as e: return str(e)
        return ''
    return {s.name: why(s) for s in scans}


EVIL = (
    'reference://x::{}',
    'file:///etc',
    'file:///etc/hostname',
    'zip://a.png::{}',
    'simplecache::file:///etc/hostname',
    'filecache://x',
    'memory://x',
    'github://a:b@/c',
    'local:///etc',
    'dir::file:///etc',
    'python://x',
    's3://bucket/a.png::file:///etc/hostname',
    'REFERENCE://x',
)


def test_a_list_opens_no_address_that_runs_code(sound, tmp_path, monkeypatch):
    "A row of a list was handed to fsspec as it is: with some releases of it, `reference://` ran code"
    put(tmp_path, sound, 'png 8', 'a.png')
    evil = [o.format((tmp_path/'a.png').as_posix()) for o in EVIL]
    fsspec = pytest.importorskip('fsspec')
    monkeypatch.setattr(fsspec.core, 'url_to_fs', lambda *a, **k: pytest.fail(f'opened {a}'))
    (tmp_path/'list.csv').write_text('path\na.png\n'+'\n'.join(evil)+'\n')
    got = rows(scans_of(tmp_path/'list.csv'))
    assert len(got) == 1+len(evil) and [bool(w) for w in got.values()] == [False]+[True]*len(evil)
    assert all('This address is not opened' in w for w in list(got.values())[1:])
    for o in evil:
        with pytest.raises(OctError, match='This address is not opened'): scans_of(o)


def test_a_list_stays_in_its_folder(sound, tmp_path):
    (tmp_path / 'inner').mkdir(), (tmp_path / 'scans').mkdir()
    outside, inside = put(tmp_path, sound, 'png 8', 'out.png'), put(tmp_path / 'inner', sound, 'png 8', 'in.png')
    put(tmp_path / 'scans', sound, 'png 8', 'b.png')
    (tmp_path / 'inner/link.png').symlink_to(outside)
    lines = [
        'in.png',
        str(inside),
        '../out.png',
        str(outside),
        'link.png',
        '/etc/hostname',
        'gone.png',
        '.',
        'x/..',
        'list.csv',
        'in.png,',
    ]
    (tmp_path / 'inner/list.csv').write_text('path\n' + '\n'.join(f'"{o}"' for o in lines) + '\n,CNV\n')
    got = rows(scans_of(tmp_path / 'inner/list.csv'))
    answered = [n for n, why in got.items() if not why]
    assert answered == [str(inside)] and sum('leads outside the folder of the list' in w for w in got.values()) == 4
    assert any('names no path' in w for w in got.values()) and any('list within a list' in w for w in got.values())
    (tmp_path / 'inner/list.csv').write_text('path\nb.png\n../out.png\n')
    got = list(rows(scans_of(tmp_path / 'inner/list.csv', root=tmp_path / 'scans')).values())
    assert got[0] == '' and 'leads outside' in got[1]
    (tmp_path / 'inner/list.csv').write_text(f'path\n{outside}\n')
    assert list(rows(scans_of(tmp_path / 'inner/list.csv', root=tmp_path)).values()) == ['']


def test_every_line_of_a_list_gives_a_row(sound, tmp_path):
    put(tmp_path, sound, 'png 8', 'a.png')
    (tmp_path / 'list.csv').write_text('a.png\nb.xyz\nfolder/\nscan 7\n,\n\nhttps://\n')
    (tmp_path / 'folder').mkdir()
    assert (
        len(scans_of(tmp_path / 'list.csv')) == 5
    )  # of the seven lines one is blank and one holds no path and no other word
