"""Training survives what happens to it: killed, stopped, dealt out to two processes; and memory does not grow with the
data."""
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from oct_classify.data.scans import scan_table
from oct_classify.phantoms.phantom import phantom_folder
from oct_classify.data.split import split_table

pytestmark = pytest.mark.usefixtures('no_onnx')

SMALL = ('--arch', 'test_resnet', '--weights', 'none', '--size', '64', '--precision', 'fp32')
posix = pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')


@pytest.fixture(scope='module')
def data(tmp_path_factory): return phantom_folder(tmp_path_factory.mktemp('scans'), 6, 2, 2, shape=(124, 128))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    "The number of threads goes by what else the machine does, and the last bits of a sum by that number"
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    yield
    torch.set_num_threads(before)


def work(data, table, out, every):
    "One training in a process of its own; its weights end up in `out`"
    import torch
    from functools import partial
    from oct_classify.training import learner as room
    from oct_classify.core import atomic_write, quiet

    torch.set_num_threads(1)
    quiet()
    room.Checkpoint = partial(room.Checkpoint, every=every)
    t = room.train(table, data, 'test_resnet', 64, weights='none', seed=5, out=out, epochs=6, bs=8, precision='fp32')
    with atomic_write(out / 'final.npy', 'wb') as f:
        np.save(f, np.concatenate([p.numpy().ravel() for p in t.net.state_dict().values()]))


@pytest.mark.slow
@posix
def test_killed_at_twenty_random_moments(data, tmp_path):
    """kill -9 during training, twenty times; what goes on from there ends with the weights of a training that was left
    alone, bit for bit"""
    table = split_table(scan_table(data))
    ctx = multiprocessing.get_context('forkserver')  # imports are done once
    ctx.set_forkserver_preload(['oct_classify.training.learner'])
    begin = lambda out, every: (p := ctx.Process(target=work, args=(data, table, out, every))).start() or p
    for o in ('alone', 'warm'):
        (tmp_path / o).mkdir()
    begin(tmp_path / 'warm', 600.0).join()
    t = time.time()
    begin(tmp_path / 'alone', 600.0).join()
    took = time.time() - t
    want = np.load(tmp_path / 'alone/final.npy')
    rng, kills, round_, states = random.Random(0), 0, 0, set()
    while kills < 20:
        round_ += 1
        out = tmp_path / f'round{round_}'
        out.mkdir()
        while kills < 20 and not (out / 'final.npy').exists():
            p = begin(out, rng.choice((600.0, 0.1, 0.0)))
            p.join(rng.uniform(0.1, 1) * took)
            if p.is_alive():
                p.kill()
                kills += 1
            p.join()
            assert p.exitcode in (0, -signal.SIGKILL)
            states.update(f.stem for f in (out / 'checkpoints').glob('*/*-*.pt'))
        begin(out, 600.0).join()
        assert np.array_equal(np.load(out / 'final.npy'), want), round_
    inside = {s for s in states if not s.endswith('-0000000')}
    print(
        f'{kills} kills in {round_} trainings; states seen after them: {len(states)}, of which {len(inside)} within '
        'an epoch'
    )
    assert len(states) > 3 and inside


def start(*argv):
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-m', 'oct_classify.cli', *map(str, argv)], stderr=subprocess.PIPE, text=True
    )


def until(p, word):
    "Read what a process says until a line holds `word`"
    for line in p.stderr:
        if word in line: return line


@posix
@pytest.mark.parametrize('sig', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_training_goes_on(cli, data, tmp_path, sig):
    """Ctrl-C, or a cluster's SIGTERM: one sentence; the same command goes on, and ends with the figures of one that
    was not stopped"""
    args = ('run', data, *SMALL, '--epochs', '12', '--bs', '8')
    p = start(*args, '--out', tmp_path / 'stopped')
    until(p, 'Epoch 2/')
    p.send_signal(sig)
    rest = p.stderr.read()
    p.stderr.close()
    assert (
        p.wait() == 130
        and rest.strip().splitlines()[-1].endswith('run the same command again to resume.')
        and 'Traceback' not in rest
    )
    left = sorted(o.name for o in (tmp_path / 'stopped').iterdir())
    assert left == ['checkpoints', 'duplicates.parquet', 'history.csv', 'pixels', 'scans.parquet', 'split.csv']
    code, _, err = cli(*args, '--out', tmp_path / 'stopped')
    assert code == 0 and 'Resuming after epoch' in err and 'Epoch 2/' not in err
    assert not (tmp_path / 'stopped/checkpoints').exists()  # a finished training needs none
    assert cli(*args, '--out', tmp_path / 'alone', '--quiet')[0] == 0
    a, b = [load_file(tmp_path / o / 'bundle/model.safetensors') for o in ('stopped', 'alone')]
    assert all(np.array_equal(a[k], b[k]) for k in b)
    h = pd.read_csv(tmp_path / 'stopped/history.csv')
    assert h.epoch.tolist() == list(range(1, 13))


@posix
def test_without_a_folder_ctrl_c_stops_at_once(data):
    "In memory there is no state to keep: the first Ctrl-C counts, also while the head is fitted"
    code = f"""if 1:
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler) # a shell's background jobs begin with Ctrl-C ignored
        from oct_classify.data.scans import scan_table
        from oct_classify.data.split import split_table
        from oct_classify.training.learner import train
        data = {str(data)!r}
        train(split_table(scan_table(data)), data, 'test_resnet', 64, weights='none', epochs=10_000)"""
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stderr=subprocess.PIPE, text=True)
    until(p, 'Epoch 2/')
    p.send_signal(signal.SIGINT)
    try:
        assert 'KeyboardInterrupt' in p.communicate(timeout=60)[1]
    finally:
        p.kill()


def stopped_at_its_first_state(cli, *args):
    from oct_classify.training import checkpoint as ck
    real = ck.save_state

    def stop(folder, at, state):
        real(folder, at, state)
        raise ck.Stopped
    with pytest.MonkeyPatch.context() as m:
        m.setattr(ck, 'save_state', stop)
        assert cli(*args)[0] == 130


def test_states_of_another_training_are_not_used(cli, data, tmp_path):
    args = ('train', data, *SMALL, '--bs', '8', '--out', tmp_path)
    stopped_at_its_first_state(cli, *args, '--epochs', '3')
    code, _, err = cli(*args, '--epochs', '2')
    assert (
        code == 0 and 'Resuming' not in err and len(list((tmp_path / 'checkpoints').iterdir())) == 1
    )  # the other's states are left alone


def test_no_resume_begins_anew(cli, data, tmp_path):
    args = ('train', data, *SMALL, '--epochs', '2', '--bs', '8', '--out', tmp_path)
    stopped_at_its_first_state(cli, *args)
    code, _, err = cli(*args, '--no-resume')
    assert code == 0 and 'Resuming' not in err and 'Epoch 1/2' in err


def test_a_loss_that_is_no_number(cli, data, tmp_path, monkeypatch):
    "One sentence, exit code 2, and the last good state at hand"
    from fastai.vision.all import Callback
    from oct_classify.training import learner as room

    class Poison(Callback):
        def after_pred(self):
            if self.epoch == 1:
                self.learn.pred = self.pred * float('nan')

    monkeypatch.setattr(room, 'loggers', lambda *a: [Poison()])
    code, _, err = cli('train', data, *SMALL, '--epochs', '3', '--out', tmp_path)
    last = err.strip().splitlines()[-1]
    assert (
        code == 2
        and 'NaN or infinite in epoch 2' in last
        and '00001-0000000.pt' in last
        and 'Traceback' not in err
        and 'Exception' not in err
    ), err
    assert list((tmp_path / 'checkpoints').glob('*/00001-0000000.pt')) and not (tmp_path / 'bundle').exists()


def test_too_large_a_batch(cli, data, tmp_path, monkeypatch):
    "Out of memory: the batch size that fits, in one sentence"
    import torch
    from oct_classify.training.network import Pixels
    real = Pixels.forward

    def full(self, x):
        if len(x) > 10: raise torch.OutOfMemoryError('CUDA out of memory')
        return real(self, x)
    monkeypatch.setattr(Pixels, 'forward', full)
    code, _, err = cli('train', data, *SMALL, '--epochs', '1', '--bs', '32', '--out', tmp_path)
    assert code == 2 and 'use --bs 8, which does' in err and 'Traceback' not in err, err


LAUNCH = [
    sys.executable,
    '-W',
    'ignore',
    '-m',
    'torch.distributed.run',
    '--standalone',
    '--nproc_per_node',
    '2',
]  # what accelerate launch starts; with --cpu it starts one process alone


def launched(*argv):
    "The same with one and with two CPU processes (gloo)"
    for launch, env in (
        ([sys.executable, '-W', 'ignore'], {}),
        (LAUNCH, dict(OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true')),
    ):
        got = subprocess.run([*launch, *map(str, argv)], capture_output=True, text=True, env=dict(os.environ, **env))
        assert got.returncode == 0, got.stderr
        yield got


PLAIN = """
import sys
import numpy as np
from torch import nn
from oct_classify.training import learner as room
from oct_classify.data.scans import scan_table
from oct_classify.data.split import split_table
real = room.pretrained
def plain(*a):
    net, info = real(*a)
    net.head[0], net.head[1] = nn.Identity(), nn.Identity()
    return net, info
room.pretrained, room.fit_head = plain, lambda *a, **k: 0.
d, arch, out = sys.argv[1:]
t = room.train(split_table(scan_table(d)), d, arch, 64, seed=1, epochs=2, bs=16, augment=None, balance='none')
kept = [v.numpy().ravel() for k, v in t.net.state_dict().items() if k.startswith('body') and k.endswith('weight')]
if not room.rank_distrib(): np.save(f"{out}{t.info['processes']}.npy", np.concatenate(kept))
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(data, tmp_path, offline):
    """Without dropout, augmentation and the head's batch statistics, which differ between processes, both end with the
    same weights"""
    pytest.importorskip('accelerate')
    (tmp_path / 'plain.py').write_text(PLAIN)
    list(launched(tmp_path / 'plain.py', data, offline, tmp_path / 'w'))
    one, two = [np.load(tmp_path / f'w{n}.npy') for n in (1, 2)]
    from oct_classify.training.network import pretrained

    start = np.concatenate(
        [
            v.numpy().ravel()
            for k, v in pretrained(offline, 4, 64)[0].state_dict().items()
            if k.startswith('body') and k.endswith('weight')
        ]
    )
    r = np.corrcoef(one - start, two - start)[0, 1]
    print(
        f'correlation of how far each weight moved: {r:.4f}; largest difference {abs(one - two).max():.1e}, largest '
        f'move {abs(one - start).max():.1e}'
    )
    assert r > 0.95


@pytest.mark.slow
def test_two_processes(tmp_path, offline):
    "The command, dealt out: one speaks, one bundle is written, and the result is the same within noise"
    pytest.importorskip('accelerate')
    data = phantom_folder(tmp_path / 'scans', 16, 4, 2, shape=(124, 128))
    args = (
        '-m',
        'oct_classify.cli',
        'train',
        data,
        '--arch',
        offline,
        '--size',
        '96',
        '--epochs',
        '4',
        '--bs',
        '32',
        '--smoothing',
        '0.2',
    )
    rows, configs = [], []
    for got in launched(*args, '--out', tmp_path / 'out'):
        assert got.stderr.count('Epoch 4/4') == 1
        rows.append(pd.read_csv(tmp_path / 'out/history.csv').iloc[-1])
        configs.append(json.loads((tmp_path / 'out/bundle/config.json').read_text()))
        (tmp_path / 'out/bundle/config.json').unlink()
    assert [(c['processes'], c['options']['bs']) for c in configs] == [(1, 32), (2, 32)]
    print('one process:', rows[0].to_dict(), 'two:', rows[1].to_dict())
    assert (
        abs(rows[0].train_loss - rows[1].train_loss) < 0.15 and abs(rows[0].valid_loss - rows[1].valid_loss) < 0.6
    )  # two seeds differ by as much


def test_tensorboard(cli, data, tmp_path):
    pytest.importorskip('tensorboard')
    code, _, err = cli('train', data, *SMALL, '--epochs', '1', '--out', tmp_path, '--log', 'tensorboard')
    assert code == 0, err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    e = EventAccumulator(str(tmp_path/'tensorboard'))
    e.Reload()
    assert {'train_loss', 'valid_loss', 'accuracy'} <= set(e.Tags()['scalars'])


def test_weights_and_biases(cli, data, tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    code, _, err = cli('train', data, *SMALL, '--epochs', '1', '--out', tmp_path, '--log', 'wandb')
    assert code == 0 and list((tmp_path/'wandb').glob('offline-run-*')), err


def test_damaged_pack_is_made_anew(cli, data, tmp_path):
    args = ('train', data, *SMALL, '--epochs', '1', '--out', tmp_path, '--quiet')
    assert cli(*args)[0] == 0
    f = tmp_path/'pixels/pixels.npy'
    whole = f.read_bytes()
    f.write_bytes(whole[:1000])
    (tmp_path/'bundle/config.json').unlink()
    assert cli(*args) == (0, '', '')
    assert f.read_bytes() == whole


MEMORY = '''
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from oct_classify.training.pack import *
d,n = Path(sys.argv[1]),int(sys.argv[2])
block = np.random.default_rng(0).integers(0, 255, (500, 224, 224), dtype=np.uint8)
g = UnfinishedPack(d, '', n, (224, 224))
for _ in range(n//500): g.add(block)
t = pd.DataFrame(dict(path=[f'{i}' for i in range(n)], sha256=[f'{i}' for i in range(n)], label='CNV', error=''))
g.finish(t, size=(224, 224), view='whole')
p = open_pack(d)
dls = packed_loaders(p, t, t[:8], ('CNV',), 64)
list(zip(range(20), dls.train))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(len(x) for x,_ in dls.train.new(augment=None)) == n//64*64
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024)
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='counts resident memory as Linux does')
def test_memory_does_not_grow_with_the_pack(tmp_path):
    "An epoch over 500 MB of pixels"
    grown = float(
        subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', MEMORY, str(tmp_path), '10000'],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    assert grown < 150, f'{grown:.0f} MB more'
