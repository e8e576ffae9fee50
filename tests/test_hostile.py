"""What strangers hand over: files that are none, files that swell, tables that lie; each is refused in one sentence, or
costs its own row"""
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oct_classify import core
from oct_classify.core import CLASSES, OctError
from oct_classify.data.audit import examine
from oct_classify.data.scans import kept_table, load_table, scan_table
from oct_classify.inference import formats, inputs
from oct_classify.inference.inputs import scans_of
from oct_classify.phantoms.phantom import phantom_folder

SPECIAL = ('pipe.png', 'zero.png', 'circle.png', 'sparse.png')
posix = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such files')


def special_files(folder):
    "A pipe that nobody writes to, a file without end, a link to itself, and one of 40 GB that takes no room"
    pipe, zero, circle, sparse = (folder / name for name in SPECIAL)
    os.mkfifo(pipe)
    zero.symlink_to('/dev/zero')
    circle.symlink_to(circle)
    with open(sparse, 'wb') as f: f.truncate(40_000_000_000)


@posix
def test_special_files_cost_a_row(cli, tmp_path, no_onnx):
    "A pipe hung `audit` and `run`, /dev/zero and a sparse file took all memory, a link to itself ended `predict`"
    data, out = phantom_folder(tmp_path / 'data', 6, 0, 1, shape=(124, 128)), tmp_path / 'out'
    for folder in ('train/CNV', 'test/DME'):
        special_files(data / folder)
    code, _, said = cli('audit', data, '--out', tmp_path / 'audit')
    assert code == 0 and '8 of' in said and "can't be used" in said
    code, _, said = cli(
        'run', data, '--out', out, '--arch', 'resnet18', '--size', '64', '--weights', 'none', '--epochs', '1'
    )
    assert code == 0, said
    errors = load_table(out / 'scans.parquet').set_index('path').error
    whys = [errors[f'train/CNV/{name}'] for name in SPECIAL]
    assert all(w in why for w, why in zip(('not a file', 'not a file', "can't be opened", 'at most 128 MB'), whys))
    code, _, said = cli(
        'predict', out / 'bundle', data / 'train/CNV', data / 'test/DME/circle.png', '--out', tmp_path / 'p.csv'
    )
    why = pd.read_csv(tmp_path / 'p.csv').set_index('path').why.fillna('')
    assert code == 0 and all(why[str(data / 'train/CNV' / name)] for name in SPECIAL)


@posix
@pytest.mark.parametrize(
    'name', ['weights.safetensors', 'split.csv', 'data.zip', 'predictions.parquet', 'predictions.csv']
)
def test_a_pipe_in_place_of_an_option(name, cli, tmp_path, no_onnx):
    data, pipe = phantom_folder(tmp_path / 'data', 2, 0, 1, shape=(64, 64)), tmp_path / name
    os.mkfifo(pipe)
    request = dict(
        weights=('run', data, '--weights', pipe, '--out', tmp_path / 'o'),
        split=('run', data, '--split', pipe, '--out', tmp_path / 'o'),
        data=('download', tmp_path / 'd', '--zip', pipe),
        predictions=('evaluate', '--predictions', pipe, '--out', tmp_path / 'o'),
    )
    code, _, said = cli(*request[pipe.stem])
    assert code == 2 and said.count('\n') == 1, said


def test_a_table_found_among_the_scans_is_not_believed(tmp_path):
    "A stranger's scans.parquet inside DATA hid duplicates, one with a date in the future a file that was replaced"
    data = phantom_folder(tmp_path / 'data', 3, 0, 1, shape=(64, 64))
    one = next((data / 'train/CNV').iterdir())
    shutil.copy(one, data / 'train/CNV/CNV-77-1.jpeg')
    lie = kept_table(data, data / 'scans.parquet')
    lie['sha256'], lie['dhash'] = (
        [f'{i:064}' for i in range(len(lie))],
        np.arange(len(lie), dtype=np.uint64) << np.uint64(32),
    )
    lie.to_parquet(data / 'scans.parquet')
    (tmp_path / 'out').mkdir()
    table, _ = examine(data, tmp_path / 'out')
    assert (table.duplicate_of != '').sum() == 1
    os.utime(tmp_path / 'out/scans.parquet', (4e9, 4e9))
    date = one.stat().st_mtime
    new = Image.open(one).transpose(Image.FLIP_LEFT_RIGHT)
    new.save(one)
    with open(one, 'ab') as f:
        f.truncate(table.set_index('path').bytes[one.relative_to(data).as_posix()])
    os.utime(one, (date, date))
    table, _ = examine(data, tmp_path / 'out')
    assert (table.duplicate_of != '').sum() == 0 and (table.sha256 == scan_table(data).sha256).all()


def swollen(path):
    "A parquet file of 50 kB whose texts take 3 GB"
    import pyarrow as pa, pyarrow.parquet as pq

    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array(['x' * 1_000_000]))
    pq.write_table(
        pa.table(dict(path=rows, label=['CNV'] * 3000) | {f'p_{c}': np.full(3000, 0.25) for c in CLASSES}), path
    )


def test_a_table_that_swells(cli, tmp_path):
    from oct_classify.inference.bundle import load_bundle_table, load_config, save_bundle, write_config
    from oct_classify.training.network import network
    config = dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole')
    b = save_bundle(tmp_path / 'b', network('resnet10t', 4, (64, 64)), config)
    swollen(b / 'training.parquet')
    write_config(b, load_config(b))
    with pytest.raises(OctError, match='more than 150 MB'): load_bundle_table(b, load_config(b), 'training')
    swollen(tmp_path / 'p.parquet')
    code, _, said = cli('evaluate', '--predictions', tmp_path / 'p.parquet', '--out', tmp_path / 'o')
    assert code == 2 and 'more than 150 MB' in said and said.count('\n') == 1


def refused(path, match):
    with pytest.raises(OctError, match=match):
        [
            s.image() if not isinstance(s.image(), (str, os.PathLike)) else core.read_grey(s.image())
            for s in scans_of(path)
        ]


def test_pictures_and_volumes_that_swell(tmp_path, monkeypatch):
    Image.new('L', (400, 400)).save(tmp_path / 'x.jpg', progressive=True)
    data = (tmp_path / 'x.jpg').read_bytes()
    at = data.rindex(b'\xff\xda')
    (tmp_path / 'x.jpg').write_bytes(data[:at] + data[at:-2] * 10_000)
    refused(tmp_path / 'x.jpg', 'more passes')
    n = 50_000  # entries, listed by a thousand blocks that lie in one another
    head = lambda magic, *last: struct.pack('<12sI20s', magic, 100, bytes(20)) + struct.pack('<4I', *last)
    blocks = b''.join(head(b'MDbDir', n, 0, 88 + 52 * (i - 1) if i else 0, 0) for i in range(1000))
    (tmp_path / 'x.e2e').write_bytes(
        struct.pack('<12sI20s', b'CMDb', 100, bytes(20))
        + head(b'MDbMDir', n, 88 + 52 * 999, 0, 0)
        + blocks
        + bytes(44 * n)
    )
    refused(tmp_path / 'x.e2e', 'cut short')
    (tmp_path / 'x.xml').write_bytes(b'<HEDX>' + b'<a/>' * 3_000_000 + b'</HEDX>')
    refused(tmp_path / 'x.xml', 'at most 3.0 MB')
    (tmp_path / 'list.csv').write_bytes(b'path\n' + b'a\n' * 10)
    monkeypatch.setattr(inputs, 'MAX_LINES', 5)
    refused(tmp_path / 'list.csv', 'split it')
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as z:
        for i in range(10):
            z.writestr(f'{i}.png', b'')
    monkeypatch.setattr(core, 'MAX_LISTING', 100)
    refused(tmp_path / 'x.zip', 'split it')


def test_dicom_frames_that_swell(tmp_path):
    pytest.importorskip('pydicom')
    from types import SimpleNamespace
    ds = SimpleNamespace(Rows=64, Columns=48, BitsAllocated=16, get=lambda key, default: default)
    low, high = (b'\x81' + bytes([v]) for v in (7, 1))
    code = struct.pack('<16I', 2, 64, 64 + 2 * 500_000, *[0] * 13) + high * 500_000 + low * 500_000
    pixels = np.frombuffer(formats.unpacked_rle(code, ds), '<u2')
    assert pixels.shape == (64 * 48,) and (pixels == 256 + 7).all()  # of 64 million bytes that it would unpack to
    with pytest.raises(OctError, match='damaged'): formats.unpacked_rle(code[:4].replace(b'\2', b'\3') + code[4:], ds)


def test_a_killed_writer_leaves_nothing_for_ever(tmp_path, monkeypatch):
    "A stopped `export` or `run` left its .part folders for ever"
    begun = 'd = oct_classify.core.atomic_dir(sys.argv[1]); d.__enter__(); os.kill(os.getpid(), 9)'
    code = f'import os, sys, oct_classify.core; {begun}'
    subprocess.run([sys.executable, '-c', code, str(tmp_path / 'bundle')], check=False)
    assert len(list(tmp_path.glob('.bundle.*.part'))) == 1
    alive = tmp_path / '.bundle.0123abcd.part'
    alive.mkdir()
    with core.claimed(alive):
        monkeypatch.setattr(time, 'time', lambda: 4e9)
        with core.atomic_dir(tmp_path / 'bundle') as d:
            (d / 'y').write_text('y')
        left = sorted(p.name for p in tmp_path.iterdir())
    assert left == (['.bundle.0123abcd.part', 'bundle'] if os.name != 'nt' else left)
    assert json.dumps([p.name for p in (tmp_path / 'bundle').iterdir()]) == '["y"]'


def test_what_c_libraries_write_is_not_shown(tmp_path):
    "libtiff wrote its own remarks on a damaged file to standard error"
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.training.network import network

    config = dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole')
    save_bundle(tmp_path / 'b', network('resnet10t', 4, (64, 64)), config)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save(
        tmp_path / 'a.tif', compression='tiff_deflate'
    )
    data = bytearray((tmp_path / 'a.tif').read_bytes())
    data[100:2000] = bytes(1900)
    (tmp_path / 'a.tif').write_bytes(data)
    Image.new('L', (99, 99)).save(tmp_path / 'b.png')
    command = [
        sys.executable,
        '-m',
        'oct_classify.cli',
        'predict',
        tmp_path / 'b',
        tmp_path / 'a.tif',
        tmp_path / 'b.png',
    ]
    got = subprocess.run([*command, '--out', tmp_path / 'p.csv'], capture_output=True, text=True)
    assert got.returncode == 0 and got.stderr.count('\n') <= 2
    assert 'ZIP' not in got.stderr and 'No answer for' in got.stderr
