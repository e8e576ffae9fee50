"""How the search for close hashes grows, and how fast scans are read.

    python bench/duplicates.py [--scans FOLDER] [--most 1000000] [--repeat 3] [--json FILE]

Hashes are synthetic: `even`, each bit drawn alone, and `clustered`, the hashes of 200 phantoms with noise, which fill
the
buckets as unevenly as real scans do. One in a hundred is a close duplicate of another; all of those must be found.
Each size runs in a
process of its own, so that its peak memory is its own; seconds are medians. With --scans, the files of a folder are
read,
hashed and measured as `oct-classify audit` does.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def phantom_hashes(n=200):
    from oct_classify.core import CLASSES
    from oct_classify.data.duplicates import spectral_hash
    from oct_classify.phantoms.phantom import Phantom

    return np.array(
        [spectral_hash(Phantom(0, CLASSES[i % 4], patient=i, shape=(248, 256)).image) for i in range(n)], np.uint64
    )


def noise(rng, shape, share):
    "uint64 in which each bit is set with probability `share`"
    out = np.zeros(shape, np.uint64)
    for b in range(64): out |= (rng.random(shape, np.float32) < share).astype(np.uint64) << np.uint64(b)
    return out


def hashes(kind, n, seed=0):
    "(low, high), and the number of planted duplicates: 4 bits of each half differ at most"
    rng = np.random.default_rng(seed)
    if kind == 'even':
        h = rng.integers(0, 2**64, (n, 2), dtype=np.uint64)
    else:
        h = phantom_hashes()[rng.integers(0, 200, n)] ^ noise(rng, (n, 2), 0.25)
    k = n // 100
    for _ in range(4):
        h[:k] = (h[k : 2 * k] if _ == 0 else h[:k]) ^ (np.uint64(1) << rng.integers(0, 64, (k, 2), dtype=np.uint64))
    return h[:, 0].copy(), h[:, 1].copy(), k


def one(kind, n, repeat):
    from oct_classify.data.duplicates import close_pairs

    low, high, k = hashes(kind, n)
    seconds = []
    for _ in range(repeat):
        t = time.perf_counter()
        pairs = close_pairs(low, high)
        seconds.append(time.perf_counter() - t)
    found = set(zip(pairs.i, pairs.j))
    missed = sum((i, i + k) not in found for i in range(k))
    return dict(
        hashes=n,
        kind=kind,
        seconds=round(statistics.median(seconds), 2),
        pairs=len(pairs),
        planted=k,
        missed=missed,
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )


def reading(folder, repeat):
    from oct_classify.data.audit import look
    from oct_classify.core import quiet
    from oct_classify.data.scans import scan_table

    quiet()
    rates = []
    for _ in range(repeat + 1):  # the first warms the file cache
        t = time.perf_counter()
        table = scan_table(folder, look=look)
        rates.append(len(table) / (time.perf_counter() - t))
    return dict(
        scans=len(table),
        mean_kb=round(table.bytes.mean() / 1e3, 1),
        scans_per_second=round(statistics.median(rates[1:])),
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--scans')
    p.add_argument('--most', type=int, default=SIZES[-1])
    p.add_argument('--repeat', type=int, default=3)
    p.add_argument('--json')
    p.add_argument('--one', nargs=2, metavar=('KIND', 'N'), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.one:
        return print(json.dumps(one(a.one[0], int(a.one[1]), a.repeat)))
    rows = []
    for kind in ('even', 'clustered'):
        for n in (n for n in SIZES if n <= a.most):
            rows.append(
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, '--one', kind, str(n), '--repeat', str(a.repeat)],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout
                )
            )
            print(
                '{kind:10s} {hashes:>9,} hashes  {seconds:7.2f} s  {peak_gb:5.2f} GB  {pairs:,} pairs, {missed} of '
                '{planted:,} planted missed'.format(
                    **rows[-1]
                ),
                flush=True,
            )
    out = dict(search=rows, cores=os.cpu_count())
    if a.scans:
        out['reading'] = reading(a.scans, a.repeat)
        print('reading {scans:,} files of {mean_kb} kB: {scans_per_second:,} scans/s'.format(**out['reading']))
    if a.json:
        with open(a.json, 'w') as f:
            json.dump(out, f, indent=1)


if __name__ == '__main__': main()
