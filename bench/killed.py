"""kill -9 at twenty random moments of a training by command; does what goes on from there end with the weights of a
training left alone?

    python bench/killed.py DATA [--kills 20] [--seed 0] [--arch tf_efficientnet_lite0] [--size 64] [--epochs 3]

Runs `oct-classify train DATA --resume …` once undisturbed, then kills it again and again, each time at a random
moment after training was announced,
until the wanted number of kills is reached, and lets it finish. A training that finishes before its kill is begun
anew elsewhere. Prints at which states it was found, and whether
every finished training has the same weights to the last bit. On a CPU.
"""
import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def begin(a, out):
    cmd = [
        sys.executable,
        '-W',
        'ignore',
        '-m',
        'oct_classify.cli',
        'train',
        a.data,
        '--out',
        out,
        '--arch',
        a.arch,
        '--size',
        a.size,
        '--epochs',
        a.epochs,
        '--resume',
    ]
    p = subprocess.Popen(list(map(str, cmd)), stderr=subprocess.PIPE, text=True)
    said = []
    ready = threading.Event()

    def listen():
        for line in p.stderr:
            said.append(line)
            if line.startswith('Training '):
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    return p, ready, said


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('data')
    ap.add_argument('--kills', type=int, default=20)
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--arch', default='tf_efficientnet_lite0')
    ap.add_argument('--size', default='64')
    ap.add_argument('--epochs', default='3')
    a = ap.parse_args()
    rng, kills, rounds, moments = random.Random(a.seed), 0, [], []
    with tempfile.TemporaryDirectory() as d:
        alone = Path(d) / 'alone'
        p, ready, said = begin(a, alone)
        ready.wait()
        t = time.time()
        assert p.wait() == 0, said
        took = time.time() - t
        want = load_file(alone / 'bundle/model.safetensors')
        while kills < a.kills:
            out = Path(d) / f'round{len(rounds)}'
            while not (out / 'bundle').exists():
                p, ready, said = begin(a, out)
                ready.wait()
                if kills < a.kills:
                    try:
                        p.wait(rng.uniform(0, 0.8) * took)
                    except subprocess.TimeoutExpired:
                        p.kill()
                        kills += 1
                        moments.append(
                            max(
                                (f.stem for f in (out / 'checkpoints').glob('*/*-*.pt')),
                                default='before the first state',
                            )
                        )
                if p.wait() > 0:
                    sys.exit(''.join(said))
            got = load_file(out / 'bundle/model.safetensors')
            rounds.append(all(np.array_equal(got[k], want[k]) for k in want))
            print(
                f'training {len(rounds)}: {kills} kills so far, weights {"equal" if rounds[-1] else "DIFFER"}',
                flush=True,
            )
    print('newest state at each kill:', ', '.join(moments))
    print(
        f'{kills} kills in {len(rounds)} trainings of {took:.0f} s; {sum(rounds)} of {len(rounds)} ended with the '
        'weights of the training left alone'
    )
    sys.exit(not all(rounds))


if __name__ == '__main__': main()
