"""Long work in parts: whoever is killed, every scan is scored exactly once, and a part that is not what it should be
is done again."""
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from oct_classify.core import *
from oct_classify.inference.batch import *

SCANS = [f'CNV-{i}-1.jpeg' for i in range(25)]
ray = pytest.mark.skipif(not importlib.util.find_spec('ray'), reason="the extra 'ray' is not installed")


def score(block): return pd.DataFrame(dict(path=block, p=[int(n.split('-')[1])/25 for n in block]))


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, tmp_path):
    if request.param == 'disk': return str(tmp_path/'parts')
    url = f'memory://{tmp_path.name}/parts'
    request.addfinalizer(lambda: Parts(url, SCANS, replace=True).folder.clear())
    return url


def test_parts_on_planted_faults(folder):
    p = Parts(folder, SCANS, dict(model='a'), size=10)
    with pytest.raises(OctError, match='3 of 3 blocks'):
        p.merged()
    pd.testing.assert_frame_equal(work_off(p, score), score(SCANS))
    part = p.folder.read('part-000001.parquet')
    for bad in (
        part[: len(part) // 2],
        b'',
        p.folder.read('part-000000.parquet'),
        as_part(score(SCANS[10:19])),
        as_part(score(SCANS[10:19] + SCANS[18:19])),
        as_part(score(SCANS[10:20] + SCANS[19:20])),
    ):
        p.folder.write('part-000001.parquet', bad)
        assert p.todo() == [1]
        with pytest.raises(OctError, match='1 of 3 blocks'):
            p.merged()
    for rows in (SCANS[10:19], SCANS[10:19] + SCANS[18:19], SCANS[10:20] + SCANS[19:20], SCANS[:10]):
        with pytest.raises(OctError, match='Block 1 came back with other scans'):
            p.put(1, score(rows))
    asked = []
    pd.testing.assert_frame_equal(work_off(p, lambda b: asked.append(b) or score(b)), score(SCANS))
    assert asked == [SCANS[10:20]]
    with pytest.raises(OctError, match='another list of scans'):
        Parts(folder, SCANS[::-1], dict(model='a'))
    with pytest.raises(OctError, match='another model or other options'):
        Parts(folder, SCANS, dict(model='b'))
    p.folder.write('plan.json', b'{"schema": 1')
    with pytest.raises(OctError, match='plan is lost'):
        Parts(folder, SCANS, dict(model='a'))
    assert Parts(folder, SCANS, dict(model='b'), replace=True).todo() == [0]


DRIVER = '''
import os, sys, time
from oct_classify.inference.inputs import scans_of
from oct_classify.inference.batch import *
data, bundle, folder = sys.argv[1:]
def make(files, options, cpus):
    score = model_scorer(files, options, cpus)
    with open(folder + '.pids', 'a') as f: print(os.getpid(), file=f, flush=True)
    def slow(scans):
        time.sleep(.7)
        return score(scans)
    return slow
parts = Parts(folder, scans_of(data), dict(bundle=bundle_hash(bundle), abstain=True), 10)
spread(parts, make, ({}, 1), bundle_files(bundle), workers=1)
'''


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "60 scans of phantoms, and a small network with random weights"
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.training.network import network
    from oct_classify.phantoms.phantom import phantom_folder

    d = tmp_path_factory.mktemp('scale')
    data = phantom_folder(d / 'data', 5, 0, 0, scans=3, shape=(124, 128))
    set_seed(0)
    return data, save_bundle(
        d / 'bundle',
        network('resnet18', 4, 64).eval(),
        dict(arch='resnet18', classes=list(CLASSES), size=[64, 64], view='whole', mirror=False),
    )


def wait(until, seconds=600):
    end = time.time()+seconds
    while not until():
        assert time.time() < end, 'waited in vain'
        time.sleep(.1)


def gone(pid):
    "No such process, or one that has ended and waits to be buried"
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z'
    except OSError: return True


@pytest.mark.slow
@ray
@pytest.mark.skipif(sys.platform != 'linux', reason='processes are watched through /proc')
def test_worker_and_driver_killed(work, tmp_path, capsys):
    from oct_classify.data.audit import look
    from oct_classify.inference.batch import predict_files
    from oct_classify.data.scans import kept_table
    from oct_classify.inference.inputs import scans_of
    from oct_classify.inference.model import OctModel
    from oct_classify.inference.batch import cluster, predict_ray, scan_table_ray, spread

    data, bundle = work
    folder, script = tmp_path / 'parts', tmp_path / 'driver.py'
    script.write_text(DRIVER)

    def done():
        return {f.name: f.stat().st_mtime_ns for f in folder.glob('part-*.parquet')}

    def pids():
        return list(map(int, Path(f'{folder}.pids').read_text().split())) if Path(f'{folder}.pids').exists() else []

    driver = subprocess.Popen([sys.executable, '-W', 'ignore', script, data, bundle, folder])
    try:
        wait(lambda: len(done()) >= 1)
        os.kill(pids()[0], signal.SIGKILL)
        wait(lambda: len(pids()) > 1 and len(done()) >= 3)
    finally:
        driver.kill()
        driver.wait()
    wait(lambda: all(map(gone, pids())))
    before = done()
    assert 3 <= len(before) < 6
    with cluster(cpus=2):
        many = predict_ray(bundle, data, folder, size=10)
        assert not {k for k in before if done()[k] != before[k]}, 'what was done is not done again'
        scans = [str(o) for o in range(4)]

        def die(items):
            os.kill(os.getpid(), signal.SIGKILL)

        def fail(items):
            raise OctError('This is the sentence.')

        with pytest.raises(OctError, match=r'Block 0 ended 3 workers \(from 0 to 3\)'):
            spread(Parts(tmp_path / 'dies', scans), lambda: die)
        with pytest.raises(OctError, match='^This is the sentence.$'):
            spread(Parts(tmp_path / 'fails', scans), lambda: fail)
        read = scan_table_ray(data, tmp_path / 'scans.parquet', look=look, size=20)
    one = work_off(Parts(tmp_path / 'one', scans_of(data), size=10), OctModel.load(bundle, threads=1).predict)
    assert len(many) == 60 and many.path.is_unique
    pd.testing.assert_frame_equal(many, one, check_exact=False, rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(read, kept_table(data, tmp_path / 'kept.parquet', look=look))
    assert [o for o in sorted(os.listdir(tmp_path)) if 'scans' in o] == ['scans.parquet']
    assert 'raylet' not in capsys.readouterr().out
    folder.rename(tmp_path / 't.csv.parts')  # nothing is left to do, so the command only puts the parts together
    predict_files(bundle, [data], tmp_path / 't.csv', engine='ray')
    assert (
        pd.read_csv(tmp_path / 't.csv').path.tolist() == one.path.tolist() and not (tmp_path / 't.csv.parts').exists()
    )


@ray
def test_no_cluster_there():
    from oct_classify.inference.batch import cluster
    with pytest.raises(OctError, match='127.0.0.1:1 does not answer'):
        with cluster('127.0.0.1:1'): pass


def test_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    from oct_classify.inference.batch import cluster
    with pytest.raises(OctError, match=r'oct_classify\[ray\]'):
        with cluster(): pass
