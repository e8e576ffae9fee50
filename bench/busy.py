"""How much longer do run, predict and audit take beside as many endless loops as there are cores?

    python bench/busy.py DATA [--repeat 3] [--only run,predict,audit] [--json FILE]

DATA is a folder of scans in Kaggle's layout. Each command runs in a process of its own and to a new folder, in turns
alone and beside the loops; the ratio is the median over pairs. A fair share beside as many loops as cores is twice the
time. `run` trains one epoch of recipe `fast` from ImageNet. Linux or macOS.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from oct_classify.core import cores


def cli(*args):
    "Seconds of a command"
    t = time.perf_counter()
    subprocess.run([sys.executable, '-m', 'oct_classify.cli', *map(str, args)], check=True, capture_output=True)
    return time.perf_counter() - t


@contextmanager
def loops(n):
    "`n` endless loops in the background"
    held = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(n)]
    try: yield
    finally:
        for p in held: p.kill()


def train(data, out): return cli('run', data, '--out', out, '--recipe', 'fast', '--weights', 'imagenet', '--epochs', 1)


def work(name, data, bundle):
    "Seconds of one of the commands"
    with tempfile.TemporaryDirectory() as d:
        if name == 'run': return train(data, d)
        if name == 'audit': return cli('audit', data, '--out', d)
        return cli('predict', bundle, data, '--out', Path(d)/'answers.csv')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--repeat', type=int, default=3)
    p.add_argument('--only', default='run,predict,audit')
    p.add_argument('--json', type=Path)
    a = p.parse_args()
    n, got = cores(), {}
    with tempfile.TemporaryDirectory() as d:
        train(a.data, d)
        for name in a.only.split(','):
            pairs = []
            for _ in range(a.repeat):
                alone = work(name, a.data, Path(d)/'bundle')
                with loops(n): pairs.append((alone, work(name, a.data, Path(d)/'bundle')))
            seconds = [round(statistics.median(o), 1) for o in zip(*pairs)]
            ratio = round(statistics.median(busy / alone for alone, busy in pairs), 2)
            got[name] = dict(alone=seconds[0], beside_loops=seconds[1], ratio=ratio)
            print(name, got[name], flush=True)
    if a.json: a.json.write_text(json.dumps(got, indent=1)+'\n')


if __name__ == '__main__': main()
