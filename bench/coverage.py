"""Do 95 % intervals hold the true figure in 95 of 100 studies? Imaginary studies of known truth, evaluated as any
table is.

    python bench/coverage.py [--studies 1000] [--resamples 1000] [--out FILE.json]

Patients have one to twenty scans that resemble each other. The truth is that of 200,000 further patients. Beside the
intervals of
`figures` stand those of the plain percentile bootstrap from the same draws.
"""
import argparse
import json

import numpy as np
import pandas as pd

from oct_classify.evaluation.bootstrap import over_blocks
from oct_classify.evaluation.calibration import calibration, proper_scores
from oct_classify.evaluation.figures import FiguresByWeight, check_predictions, figures, imaginary, patients_of, values

CASES = ((64, 2.5), (64, 4.), (200, 2.5), (200, 4.), (600, 2.5), (600, 4.))


def percentiles(df, resamples, seed):
    "{figure: (low, high)} of the percentile bootstrap"
    df = check_predictions(df)
    who = patients_of(df)
    blocks = over_blocks(FiguresByWeight(df, who), who.max() + 1, resamples, seed)
    with np.errstate(all='ignore'):
        return {m: np.nanquantile(np.concatenate([b[m] for b in blocks]), (0.025, 0.975)) for m in blocks[0]}


def case(patients, skill, studies, resamples):
    "Coverage of each figure, one row per figure"
    far = check_predictions(imaginary(200_000, skill, seed=99))
    squares, surprise = proper_scores(far)
    truth, got = values(far) | dict(brier=squares.mean(), nll=surprise.mean()), {}
    for i in range(studies):
        df = imaginary(patients, skill, seed=[patients, int(10 * skill), i])
        ours = figures(df, resamples, i) | {
            m: o for m, o in calibration(df, resamples, i).items() if m in ('brier', 'nll')
        }
        plain = percentiles(df, resamples, i)
        for m, o in ours.items():
            if o['value'] is None:
                continue
            low, high = plain.get(m, (np.nan, np.nan))
            got.setdefault(m, []).append(
                (o['low'] <= truth[m] <= o['high'], low <= truth[m] <= high if m in plain else np.nan)
            )
    return pd.DataFrame(
        [
            dict(
                patients=patients,
                truth=truth[m],
                figure=m,
                ours=np.mean([a for a, _ in v]),
                percentile=np.mean([b for _, b in v]),
                studies=len(v),
            )
            for m, v in got.items()
        ]
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--studies', type=int, default=1000)
    p.add_argument('--resamples', type=int, default=1000)
    p.add_argument('--out')
    a = p.parse_args()
    tables = []
    for patients, skill in CASES:
        tables.append(t := case(patients, skill, a.studies, a.resamples).assign(skill=skill))
        print(
            f'\n{patients} patients, accuracy {t.truth[t.figure == "accuracy"].iloc[0]:.1%}, {a.studies} studies; '
            'covered, ours and percentile'
        )
        for r in t.itertuples():
            print(f'  {r.figure:22s} {r.truth:6.3f}  {r.ours:6.1%}  {r.percentile:6.1%}', flush=True)
    df = pd.concat(tables)
    print(
        f'\nours: {df.ours.min():.1%} to {df.ours.max():.1%}, median {df.ours.median():.1%}, '
        f'{((df.ours >= 0.93) & (df.ours <= 0.97)).mean():.0%} of {len(df)} within 93 to 97 %; percentile: '
        f'{df.percentile.min():.1%} to {df.percentile.max():.1%}, '
        f'{((df.percentile >= 0.93) & (df.percentile <= 0.97)).sum() / df.percentile.notna().sum():.0%} within'
    )
    if a.out:
        json.dump(df.to_dict('records'), open(a.out, 'w'), indent=1)


if __name__ == '__main__': main()
