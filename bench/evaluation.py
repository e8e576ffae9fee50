"""How long figures take: 10,000 resamples of 1,000 scans, and the whole evidence on 100,000 predictions.

    python bench/evaluation.py [--repeat 5]

Imaginary predictions, 2.5 scans per patient. `figures` is every figure with its interval; `with calibration` adds
ECE, Brier score and
likelihood; `evaluate` is the command, from CSV to report, with thresholds fixed on 2,000 validation predictions.
Medians, in seconds.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from oct_classify.pipeline import evaluate
from oct_classify.evaluation.calibration import calibration
from oct_classify.core import quiet
from oct_classify.evaluation.figures import check_predictions, figures, imaginary


def predictions(n, seed=0):
    "Exactly `n` scans, checked"
    return check_predictions(imaginary(int(n/2.3), 2.5, seed=seed)[:n])


def seconds(f, repeat):
    "Median, and how far single runs lie apart"
    t = []
    for _ in range(repeat):
        begun = time.perf_counter()
        f()
        t.append(time.perf_counter()-begun)
    return f'{np.median(t):.2f} s ({min(t):.2f} to {max(t):.2f})'


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeat', type=int, default=5)
    a = p.parse_args()
    quiet()
    small, large = predictions(1000), predictions(100_000)
    print(
        '1,000 scans, 10,000 resamples, figures:         ',
        seconds(lambda: figures(small, 10_000), a.repeat),
        flush=True,
    )
    print(
        '1,000 scans, 10,000 resamples, with calibration:',
        seconds(lambda: (figures(small, 10_000), calibration(small, 10_000)), a.repeat),
        flush=True,
    )
    print('100,000 scans, 2,000 resamples, figures:        ', seconds(lambda: figures(large), a.repeat), flush=True)
    with tempfile.TemporaryDirectory() as d:
        both = pd.concat([large.assign(split='test'), predictions(2000, 1).assign(split='valid')])
        both.drop(columns='predicted').to_csv(Path(d) / 'p.csv', index=False)
        print(
            '100,000 scans, oct-classify evaluate:           ',
            seconds(lambda: evaluate(predictions=Path(d) / 'p.csv', out=Path(d) / 'o'), a.repeat),
            flush=True,
        )


if __name__ == '__main__': main()
