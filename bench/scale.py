"""20,000 scans by one process, by local Ray, and by local Ray with a worker and the driver killed: the same table,
each scan once?

    python bench/scale.py [--scans 20000] [--arch resnet18] [--size 160x240] [--block 256] [--timed 5000] [--rounds 2]
        [--workers N] [--cpus N] [--out FILE.json]

Draws 240 phantoms as JPEGs of 496x512 and gives each many names by hard links, so that reading and decoding cost what
they cost; saves a network with random weights as a bundle. Then

1. throughput: `--rounds` times in turns, one process and Ray score the first `--timed` scans, each in a fresh process
of its own; the clock of a run starts with its process, and what lies before
   its first finished block is set apart as start-up;
2. the whole list by one process;
3. the whole list by Ray: a worker is killed with kill -9 after a quarter of the blocks and the driver with kill -9
after half of them; the same command is started again and finishes.

Prints a table, the load of the machine, and whether both tables are equal. The exit code is 1 where they are not.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from oct_classify.core import CLASSES, quiet, set_seed


def make_scans(folder, n, different=240):
    "`n` files under distinct names, of `different` phantoms"
    from oct_classify.phantoms.phantom import Phantom
    from PIL import Image
    source = Path(folder)/'source'
    source.mkdir(parents=True)
    for i in range(different): Image.fromarray(Phantom(i, CLASSES[i % 4]).image).save(source/f'{i}.jpeg', quality=90)
    for i in range(n):
        f = Path(folder)/'scans'/f'{i//1000:03d}'/f'{CLASSES[i % different % 4]}-{1000+i}-1.jpeg'
        f.parent.mkdir(parents=True, exist_ok=True)
        os.link(source/f'{i % different}.jpeg', f)
    return Path(folder)/'scans'


def make_bundle(folder, arch, size):
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.training.network import network

    set_seed(0)
    return save_bundle(
        folder,
        network(arch, 4, size).eval(),
        dict(arch=arch, classes=list(CLASSES), size=list(size), view='whole', mirror=False),
        onnx=True,
    )


def files_of(a): return sorted(map(str, (Path(a.dir)/'scans').rglob('*.jpeg')))[:a.n]


def job(a):
    "One run, in a process of its own"
    quiet()
    from oct_classify.inference.batch import Parts, bundle_hash, work_off

    bundle = f'{a.dir}/bundle'
    if a.job == 'one':
        from oct_classify.inference.model import OctModel

        t = work_off(
            Parts(a.parts, files_of(a), dict(bundle=bundle_hash(bundle)), a.block), OctModel.load(bundle).predict
        )
    else:
        from oct_classify.inference.batch import predict_ray

        t = predict_ray(bundle, files_of(a), a.parts, workers=a.workers, cpus=a.cpus, size=a.block)
    t.to_parquet(a.table)


def begin(a, kind, n, name):
    "Start a run; its process, and the folder of its parts"
    parts, table = f'{a.dir}/{name}.parts', f'{a.dir}/{name}.parquet'
    cmd = [
        sys.executable,
        '-W',
        'ignore',
        __file__,
        '--job',
        kind,
        '--dir',
        a.dir,
        '--n',
        n,
        '--parts',
        parts,
        '--table',
        table,
        '--block',
        a.block,
        '--cpus',
        a.cpus,
    ]
    if a.workers:
        cmd += ['--workers', a.workers]
    return subprocess.Popen(list(map(str, cmd))), Path(parts), table


def done(parts): return len(list(parts.glob('part-*.parquet')))


def timed(a, kind, n, name):
    "A run left alone: seconds in all, until the first block, and scans per second from there on"
    t0 = time.time()
    p, parts, table = begin(a, kind, n, name)
    assert p.wait() == 0, f'{kind} failed'
    total = time.time()-t0
    at = sorted(f.stat().st_mtime for f in parts.glob('part-*.parquet'))
    blocks = len(at)
    rate = a.block*(blocks-2)/(at[-2]-at[0]) if blocks > 3 else n/total # the last block may be short
    return dict(scans=n, seconds=total, rate=rate, start_up=total-n/rate, load=os.getloadavg()[0], table=table)


def workers_of(driver):
    "Ray's worker processes below this driver"
    out = [
        line.split(None, 2)
        for line in subprocess.run(
            ['ps', '-eo', 'pid=,ppid=,args='], capture_output=True, text=True
        ).stdout.splitlines()
    ]
    parent = {int(pid): int(up) for pid, up, *_ in out}

    def below(pid):
        while pid and pid != driver:
            pid = parent.get(pid, 0)
        return pid == driver

    return [int(pid) for pid, _, args in out if 'ray::MapWorker' in args and below(int(pid))]


def wait_for(p, parts, n):
    while done(parts) < n:
        if p.poll() is not None: sys.exit(f'Ray ended with {p.returncode} after {done(parts)} blocks')
        time.sleep(.2)


def killed(a, n, name):
    "The run that is disturbed; seconds, and what was done to it"
    t0, blocks, log = time.time(), -(-n // a.block), []
    p, parts, table = begin(a, 'ray', n, name)
    wait_for(p, parts, blocks // 4)
    victim = workers_of(p.pid)[0]
    os.kill(victim, signal.SIGKILL)
    log.append(f'worker {victim} killed at {done(parts)} of {blocks} blocks')
    wait_for(p, parts, blocks // 2)
    p.kill()
    p.wait()
    log.append(f'driver killed at {done(parts)} blocks')
    time.sleep(3)
    before = {f.name: f.stat().st_mtime_ns for f in parts.glob('part-*.parquet')}
    t1 = time.time()
    p, parts, table = begin(a, 'ray', n, name)
    assert p.wait() == 0, 'Ray failed when started again'
    kept = sum(f.stat().st_mtime_ns == before.get(f.name) for f in parts.glob('part-*.parquet'))
    log.append(
        f'second start took {time.time() - t1:.0f} s, did {blocks - kept} blocks and left {kept} of {len(before)} '
        'untouched'
    )
    return dict(scans=n, seconds=time.time() - t0, log=log, load=os.getloadavg()[0], table=table)


def compare(a, x, y, n):
    "Do two tables hold every scan once, with the same answers?"
    x, y = pd.read_parquet(x), pd.read_parquet(y)
    once = all(
        len(t) == n and t.path.is_unique and set(t.path) == set(files_of(argparse.Namespace(dir=a.dir, n=n)))
        for t in (x, y)
    )
    p = [c for c in x if c.startswith('p_')]
    return dict(
        once=once,
        equal=x.equals(y),
        largest=float(np.abs(x[p].to_numpy() - y[p].to_numpy()).max()),
        same_answers=bool((x.predicted == y.predicted).all()),
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--scans', type=int, default=20000)
    ap.add_argument('--timed', type=int, default=5000)
    ap.add_argument('--rounds', type=int, default=2)
    ap.add_argument('--arch', default='resnet18')
    ap.add_argument('--size', default='160x240')
    ap.add_argument('--block', type=int, default=256)
    ap.add_argument('--workers', type=int)
    ap.add_argument('--cpus', type=float, default=1)
    ap.add_argument('--out')
    for o in ('--job', '--dir', '--parts', '--table'):
        ap.add_argument(o, help=argparse.SUPPRESS)
    ap.add_argument('--n', type=int, help=argparse.SUPPRESS)
    a = ap.parse_args()
    a.timed = min(a.timed, a.scans)
    if a.job:
        return job(a)
    with tempfile.TemporaryDirectory(dir=os.environ.get('OCT_TMP')) as d:
        a.dir = d
        make_scans(d, a.scans)
        make_bundle(f'{d}/bundle', a.arch, tuple(map(int, a.size.split('x'))))
        print(f'{a.scans:,} scans, {a.arch} at {a.size}, blocks of {a.block}, {os.cpu_count()} cores', flush=True)
        rows = []
        for r in range(a.rounds):
            for kind in ('one', 'ray'):
                rows.append(
                    dict(what='one process' if kind == 'one' else 'Ray') | timed(a, kind, a.timed, f'{kind}{r}')
                )
                print(
                    '{what:12s} {scans:6,} scans {seconds:6.1f} s, {rate:6.1f} scans/s, start-up {start_up:5.1f} s, '
                    'load {load:.1f}'.format(
                        **rows[-1]
                    ),
                    flush=True,
                )
        one, ray = ([o for o in rows if o['what'] == k] for k in ('one process', 'Ray'))
        ratio = float(np.median([y['rate'] / x['rate'] for x, y in zip(one, ray)]))
        print(f'Ray reaches {ratio:.0%} of the throughput of one process (median of {a.rounds} pairs)', flush=True)
        whole = dict(what='one process, all') | timed(a, 'one', a.scans, 'whole')
        print(
            '{what} {scans:,} scans {seconds:.1f} s, {rate:.1f} scans/s, '
            'start-up {start_up:.1f} s, load {load:.1f}'.format(
                **whole
            ),
            flush=True,
        )
        hurt = dict(what='Ray, killed twice') | killed(a, a.scans, 'killed')
        print(
            '{what} {scans:,} scans {seconds:.1f} s, load {load:.1f}'.format(**hurt),
            *hurt['log'],
            sep='\n  ',
            flush=True,
        )
        same = compare(a, whole['table'], hurt['table'], a.scans)
        print(
            f"every scan once: {same['once']}; tables equal to the last bit: {same['equal']}; largest difference of a "
            f"probability: {same['largest']:.1e}; same answers: {same['same_answers']}",
            flush=True,
        )
    if a.out:
        Path(a.out).write_text(
            json.dumps(dict(rows=rows, ratio=ratio, whole=whole, killed=hurt, same=same), indent=1) + '\n'
        )
    sys.exit(not (same['once'] and same['largest'] < 1e-6))


if __name__ == '__main__': main()
