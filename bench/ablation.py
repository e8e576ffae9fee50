"""What each choice of the options is worth: one change at a time against the default, cross-validated over patients
inside train and val.

    python bench/ablation.py DATA [--out DIR] [--size 160] [--folds 5] [--only base,smoothing] [--strong] [--table]

No scan of the test folder is learned from or predicted. Each held-out fold is predicted by a network that was trained
on four fifths of the
rest and validated on the other fifth.
Predictions are kept in DIR, one file per variant and fold; the same command goes on where it was. --strong gives all
variants the strong augmentation. --table only prints what is there:
accuracy with the 95 % interval, and the difference to the default with the interval of the same patients resampled in
pairs.
The `rare_` variants learn from a training part thinned to the mix of Kaggle's training folder (CNV 37 : DME 11 :
DRUSEN 9 : NORMAL 26).
"""
import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

import oct_classify.training.learner as room
from oct_classify.core import quiet
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.figures import as_text, figures
from oct_classify.training.recipes import Augment
from oct_classify.inference.model import OctModel
from oct_classify.data.split import components

STRONG = Augment(rotate=10., zoom=.1, shift=.06, brightness=.1, contrast=.2, speckle=.15)
VARIANTS = dict(
    base={},
    no_augment=dict(augment=None),
    smoothing=dict(smoothing=0.1),
    rare_loss={},
    rare_none=dict(balance='none'),
    strong_augment=dict(augment=STRONG),
    uniform_rate=dict(body=1.0),
    no_head_first={},
    moving_bn=dict(fixed_bn=False),
    bf16=dict(precision='bf16'),
    rate_3e4=dict(lr=3e-4),
    rate_3e3=dict(lr=3e-3),
    epochs_8=dict(epochs=8),
)
MIX = dict(CNV=37_205, DME=11_348, DRUSEN=8_616, NORMAL=26_315)


def folds(t, k, seed=0):
    "Split tables: test is the fold, valid a fifth of the rest"
    for i, (_, held) in enumerate(
        StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(t, t.label, components(t))
    ):
        rest = t.drop(index=held)
        _, v = next(
            StratifiedGroupKFold(5, shuffle=True, random_state=seed + i).split(
                rest, rest.label, components(rest.reset_index(drop=True))
            )
        )
        side = np.full(len(t), 'train', object)
        side[held], side[rest.index[v]] = 'test', 'valid'
        yield t.assign(split=side)


def thinned(df, seed=0):
    "Training scans in the mix of Kaggle's training folder"
    n = df[df.split == 'train'].label.value_counts()['CNV']
    keep = [
        g.sample(round(n * MIX[c] / MIX['CNV']), random_state=seed).index
        for c, g in df[df.split == 'train'].groupby('label')
    ]
    return df.loc[np.concatenate([df.index[df.split != 'train'], *keep])].sort_index()


def one(name, df, data, size, seed, strong=False):
    "Predictions of the held-out fold"
    df = thinned(df) if name.startswith('rare_') else df
    kw = (
        dict(arch='tf_efficientnet_lite0', size=size, view='whole', seed=seed)
        | (dict(augment=STRONG) if strong else {})
        | VARIANTS[name]
    )
    with patch.object(room, 'fit_head', lambda *a, **k: 0.0) if name == 'no_head_first' else nullcontext():
        o = room.train(df, data, **kw)
    h = df[df.split == 'test']
    m = OctModel(o.net, dict(o.info, temperature=1.0, mirror=True, thresholds={}))
    return m.predict([data / q for q in h.path], h.path).assign(label=h.label.values, patient=h.patient.values)


def table(out):
    "One line per variant"
    files = sorted(out.glob('*-*.parquet'))
    got = {
        n: pd.concat([pd.read_parquet(f) for f in fs]).sort_values('path', ignore_index=True)
        for n in VARIANTS
        if (fs := [f for f in files if f.stem.rpartition('-')[0] == n])
    }
    rows = []
    for n, p in got.items():
        f = figures(p)
        b = got['rare_loss' if n.startswith('rare_') else 'base'].set_index('path').loc[p.path]
        d = pd.DataFrame(
            dict(
                patient=p.patient.to_numpy(),
                d=(p.predicted == p.label).to_numpy(float) - (b.predicted == b.label).to_numpy(float),
            )
        )
        g = d.groupby('patient', sort=False).d.agg(['sum', 'count']).to_numpy()
        w = np.random.default_rng(0).multinomial(len(g), np.full(len(g), 1 / len(g)), 5000)
        low, high = np.quantile((w @ g[:, 0]) / (w @ g[:, 1]), (0.025, 0.975)) * 100
        rows.append(
            dict(
                variant=n,
                scans=len(p),
                accuracy=as_text(f['accuracy'], 'accuracy'),
                difference=f'{d.d.mean() * 100:+.1f} ({low:+.1f} to {high:+.1f})',
                weighted_error=as_text(f['weighted_error'], 'weighted_error'),
                urgent_auc=as_text(f['urgent_auc'], 'urgent_auc'),
            )
        )
    return pd.DataFrame(rows).to_string(index=False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--out', type=Path, default=Path('oct-out-ablation'))
    p.add_argument('--size', default='160')
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--strong', action='store_true', help='all variants with the strong augmentation')
    p.add_argument('--only', default=','.join(VARIANTS))
    p.add_argument('--table', action='store_true')
    a = p.parse_args()
    quiet()
    a.out.mkdir(exist_ok=True, parents=True)
    if not a.table:
        t = scan_table(a.data)
        t = t[(t.folder != 'test') & (t.error == '')].reset_index(drop=True)
        for k, df in enumerate(folds(t, a.folds)):
            for name in a.only.split(','):
                f, begun = a.out / f'{name}-{k}.parquet', time.time()
                if f.exists():
                    continue
                o = one(name, df, a.data, a.size, k, a.strong)
                o.to_parquet(f)
                print(
                    f'fold {k + 1}, {name}: {np.mean(o.predicted == o.label):.1%} ({time.time() - begun:.0f} s)',
                    flush=True,
                )
    print(table(a.out))


if __name__ == '__main__': main()
