"Bad input costs a row or a sentence with exit code 2, and nothing half-written is left under its final name."
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oct_classify.core import *
from oct_classify.data.scans import load_table
from oct_classify.phantoms.phantom import phantom_folder

pytestmark = pytest.mark.usefixtures('no_onnx')

RUN = ('--arch', 'test_resnet', '--weights', 'none', '--size', '64', '--epochs', '1')


@pytest.fixture(scope='module')
def good(tmp_path_factory): return phantom_folder(tmp_path_factory.mktemp('good'), 5, 1, 2, shape=(124, 128))


@pytest.fixture
def data(good, tmp_path): return shutil.copytree(good, tmp_path/'scans')


def leftovers(d): return [p.name for p in d.rglob('*') if p.name.endswith(('.part', '.old'))]


def sentence(got):
    "Exit code 2 and one line on standard error, which is returned"
    code, _, err = got
    assert code == 2 and err.count('\n') == 1 and err.startswith('oct-classify: '), got
    return err


def test_bad_files_cost_a_row(cli, data, tmp_path):
    d = data / 'train/CNV'
    jpeg = (d / 'CNV-1000-1.jpeg').read_bytes()
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 128).astype(np.uint8), (124, 1)))
    bad = {
        'CNV-1-1.jpeg': b'',
        'CNV-1-2.jpeg': jpeg[: len(jpeg) // 2],
        'CNV-1-3.jpeg': b'PK\x03\x04 a renamed archive',
        'CNV-1-4.jpeg': jpeg[:40],
        'DME-1-5.jpeg': jpeg[::-1],
        'notes.txt': b'hello',
    }
    for n, b in bad.items():
        (d / n).write_bytes(b)
    Image.new('L', (1, 1)).save(d / 'CNV-1-6.png')
    Image.new('1', (20_000, 20_000)).save(d / 'CNV-1-7.png')
    Image.new('1', (10_000, 10_000)).save(d / 'CNV-1-8.png')
    fine = []
    for i, mode in enumerate(('RGBA', 'CMYK', 'P', 'I;16', 'LA', '1', 'F')):
        im = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257) if mode == 'I;16' else ramp.convert(mode)
        fine.append(f'CNV-{10 + i}-1.' + ('tif' if mode in ('CMYK', 'F') else 'png'))
        im.save(d / fine[-1])
    for n in ('two words.jpeg', 'Größe µm 網膜.jpeg', 'CNV-12-1-2-3.jpeg', "quote's <b>.jpeg"):
        if os.name != 'nt' or '<' not in n:
            Image.fromarray(255 - np.asarray(ramp)).rotate(len(n)).save(d / n)
            fine.append(n)
    if sys.platform == 'linux':
        (d / os.fsdecode(b'Gr\xf6\xdfe.jpeg')).write_bytes(jpeg)  # not UTF-8, from an old zip
    for i, p in enumerate(sorted((data / 'test/CNV').iterdir())):
        p.rename(p.with_name(f'a$_$ 網 {i}.jpeg'))  # shown among the mistakes
    assert cli('run', data, *RUN, '--out', tmp_path / 'out', '--quiet') == (0, '', '')
    if sys.platform == 'linux':
        assert load_table(tmp_path / 'out/scans.parquet').error.str.contains('not valid UTF-8').sum() == 1
    code, out, err = cli('predict', tmp_path / 'out/bundle', d, '--out', tmp_path / 'p.csv')
    assert code == 0 and len(pd.read_csv(tmp_path / 'p.csv')) > len(bad) + len(fine)
    t = load_table(tmp_path / 'out/scans.parquet').set_index('path')
    name = lambda n: f'train/CNV/{n}'
    assert (t.loc[[name(n) for n in [*bad, 'CNV-1-6.png', 'CNV-1-7.png', 'CNV-1-8.png']]].error != '').all()
    assert t.loc[[name(n) for n in fine]].error.tolist() == [''] * len(fine)
    html = (tmp_path / 'out/report.html').read_text(encoding='utf-8')
    assert 'What was left out' in html and "<b>.jpeg" not in html  # names are escaped
    s = pd.read_csv(tmp_path / 'out/split.csv').set_index('path')
    assert (s.loc[name('CNV-1-1.jpeg')].split, s.loc[name('CNV-1-1.jpeg')].reason) == (
        'dropped',
        'The file is empty (0 bytes).',
    )
    assert leftovers(tmp_path) == []


def test_folders_that_can_not_be_split(cli, data, tmp_path):
    run = lambda *more: sentence(cli('run', data, *RUN, '--out', tmp_path / 'out', '--quiet', *more))
    shutil.rmtree(data / 'test/DME')
    shutil.rmtree(data / 'val/DME')
    for p in (data / 'train/DME').iterdir():
        p.unlink()
    assert 'DME holds no scan' in run()
    (data / 'train/DME/DME-7-1.jpeg').write_bytes(b'')
    assert 'train scan of DME' in run()
    shutil.copy(next((data / 'train/CNV').iterdir()), data / 'train/DME/DME-7-1.jpeg')
    assert 'train scan of DME' in run('--policy', 'patient')  # one file under two labels is no training scan
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), dtype=np.uint8)).save(
        data / 'train/DME/DME-7-1.jpeg'
    )
    assert 'at least two patients' in run('--policy', 'patient')
    for c in ('DME', 'DRUSEN', 'NORMAL'):
        shutil.rmtree(data / 'train' / c)
    for c in ('DRUSEN', 'NORMAL'):
        for f in ('test', 'val'):
            shutil.rmtree(data / f / c)
    assert 'add a folder of another class' in run()
    for f in ('train', 'val', 'test'):
        shutil.rmtree(data / f)
    assert 'No scan was found' in run()


def test_a_class_that_only_training_has(cli, data, tmp_path):
    "An empty class folder, or one with a single patient, does not stop a run by the official test"
    shutil.rmtree(data/'test/DME')
    for p in [*(data/'train/DME').iterdir(), *(data/'val/DME').iterdir()][1:]: p.unlink()
    (data/'test/DME').mkdir()
    assert cli('run', data, *RUN, '--out', tmp_path/'out', '--quiet')[0] == 0
    import json
    m = json.loads((tmp_path/'out/metrics.json').read_text())['test']
    assert m['sensitivity_DME']['value'] is None and m['accuracy']['n'] == 12


def test_missing_and_unusable_folders(cli, data, tmp_path):
    assert 'check the path' in sentence(cli('run', tmp_path/'nowhere', '--out', tmp_path/'out'))
    f = tmp_path/'file'
    f.write_text('x')
    assert 'is a file' in sentence(cli('run', f, '--out', tmp_path/'out'))
    assert "can't be made" in sentence(cli('run', data, '--out', f))
    assert "can't be made" in sentence(cli('run', data, '--out', f/'deeper'))
    assert not (tmp_path/'out').exists() or leftovers(tmp_path/'out') == []


@pytest.mark.skipif(
    os.name == 'nt' or getattr(os, 'geteuid', lambda: 1)() == 0, reason='no folder can be made unwritable for this user'
)
def test_unwritable_folder(cli, data, tmp_path):
    (tmp_path / 'shut').mkdir(mode=0o500)
    assert 'may write' in sentence(cli('run', data, *RUN, '--out', tmp_path / 'shut', '--quiet'))


def test_official_policy_says_that_it_leaks(cli, data, tmp_path):
    """The same data: official trains on a leak and says so on top of the report, clean drops it, an unknown patient is
    named"""
    one = data / 'train/CNV/CNV-1000-1.jpeg'
    shutil.copy(one, data / 'test/CNV/CNV-1000-9.jpeg')
    code, _, err = cli('run', data, *RUN, '--policy', 'official', '--out', tmp_path / 'official')
    assert code == 0 and 'Warning: metrics' in err and 'CNV-1000-1.jpeg' in err
    assert 'These metrics are too good' in (tmp_path / 'official/report.html').read_text(encoding='utf-8')
    one.rename(one.with_name('left eye.jpeg'))
    assert cli('run', data, *RUN, '--out', tmp_path / 'clean', '--quiet')[0] == 0
    s = pd.read_csv(tmp_path / 'clean/split.csv').set_index('path')
    gone = s[s.split == 'dropped']
    assert set(gone.index) == {'train/CNV/left eye.jpeg', 'train/CNV/CNV-1000-2.jpeg'}
    assert 'patient' in gone.reason['train/CNV/CNV-1000-2.jpeg'].lower()
    assert cli('run', data, *RUN, '--policy', 'patient', '--out', tmp_path / 'patient', '--quiet')[0] == 0


LIMITED = '''
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),)*2)
from oct_classify.cli import main
sys.exit(main(sys.argv[2:]))
'''


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX resource limits')
@pytest.mark.parametrize('limit', [1_000, 100_000, 1_000_000])
def test_a_disk_that_fills_up(data, tmp_path, limit):
    """Writing beyond `limit` bytes fails as on a full disk: once for the table, once for the pixels, once for the
    model (and before that, harmlessly, for the state of training)"""
    got = subprocess.run(
        [sys.executable, '-c', LIMITED, str(limit), 'run', str(data), *RUN, '--out', str(tmp_path / 'out'), '--quiet'],
        capture_output=True,
        text=True,
    )
    assert got.returncode == 2 and 'The disk is full' in got.stderr and got.stderr.count('\n') == 1, got.stderr
    assert leftovers(tmp_path) == []
    assert not (tmp_path / 'out/bundle').exists() and (tmp_path / 'out/scans.parquet').exists() == (limit > 1_000)


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')
def test_killed_while_writing(tmp_path):
    "After kill -9 in the middle of a write, the old file stands"
    code = '''import sys, time
from oct_classify.core import *
with atomic_write(sys.argv[1]) as f:
    f.write("new"*9999)
    f.flush()
    print("now", flush=True)
    time.sleep(60)'''
    (tmp_path / 'f').write_text('old')
    p = subprocess.Popen([sys.executable, '-c', code, str(tmp_path / 'f')], stdout=subprocess.PIPE)
    p.stdout.readline()
    p.kill()
    p.wait()
    p.stdout.close()
    assert (tmp_path / 'f').read_text() == 'old'


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')
def test_ctrl_c_keeps_what_was_finished(data, tmp_path):
    "Ctrl-C during training exits with 130 and a sentence; the stages before it are kept"
    cmd = [sys.executable, '-m', 'oct_classify.cli', 'run', str(data), *RUN[:-1], '400', '--out', str(tmp_path / 'out')]
    p = subprocess.Popen(cmd, stderr=subprocess.PIPE, text=True)
    for line in p.stderr:
        if line.startswith('Epoch'):
            break
    p.send_signal(signal.SIGINT)
    rest = p.stderr.read()
    p.stderr.close()
    assert p.wait() == 130 and rest.strip().splitlines()[-1].endswith('run the same command again to resume.')
    assert (
        sorted(o.name for o in (tmp_path / 'out').iterdir())
        == ['checkpoints', 'duplicates.parquet', 'history.csv', 'pixels', 'scans.parquet', 'split.csv']
        and 'Traceback' not in rest
    )


def test_stale_or_foreign_table(cli, data, tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'out/scans.parquet').write_bytes(b'not a table')
    assert cli('run', data, *RUN, '--out', tmp_path/'out', '--quiet')[0] == 0  # a damaged table is made anew
