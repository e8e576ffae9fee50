"""Cross-validate the recipes `fast` and `best` over patients, inside train and val; no scan of the test folder is
learned from or predicted.

    python bench/recipes.py DATA [--out DIR] [--folds 5] [--seeds 3] [--members 2] [--table]

Each seed deals the patients into folds anew and trains anew. `best` is the mean of its members' logits, and its first
member is `fast`, so each
member is trained once and both recipes are read from the same predictions. These are kept in DIR, one file per
member, seed and fold, and the
same command goes on where it was; --table only prints what is there, for seeds that are complete.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from oct_classify.core import CLASSES, quiet
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.figures import as_text, figures
from oct_classify.training.pack import pack
from oct_classify.inference.model import OctModel
from oct_classify.training.learner import train_by
from oct_classify.training.recipes import RECIPES
from oct_classify.data.split import components

ARCHS = RECIPES['best'].arch.split('+')
SHOW = ('accuracy', 'weighted_error', 'urgent_auc', 'macro_auc')


def folds(t, k, seed):
    "Split tables: the fold is `valid`, which decides nothing in either recipe"
    for _, held in StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(t, t.label, components(t)):
        yield t.assign(split=np.where(np.isin(np.arange(len(t)), held), 'valid', 'train')), held


def logits(trained, packed, rows):
    "Of scan and mirror image, as every prediction has them"
    m = OctModel(trained.net, dict(trained.info, temperature=1., mirror=True, thresholds={}))
    return m.logits(packed.take(rows))


def predictions(t, z):
    p = np.exp(z-z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return t[['path', 'label', 'patient']].assign(**{f'p_{c}': p[:, i] for i, c in enumerate(CLASSES)})


def gather(out, t, a, members, seed):
    "Mean logits of the first members over all folds, or None where a fold is missing"
    z = np.full((len(t), len(CLASSES)), np.nan)
    for k, (_, held) in enumerate(folds(t, a.folds, seed)):
        files = [out/f'{arch}-{seed}-{k}.npy' for arch in ARCHS[:members]]
        if not all(f.exists() for f in files): return None
        z[held] = np.mean([np.load(f) for f in files], 0)
    return z


def table(t, a):
    "One line per recipe and seed"
    rows = []
    for name, members in (('fast', 1), ('best', len(ARCHS))):
        for seed in range(a.seeds):
            if (z := gather(a.out, t, a, members, seed)) is None:
                continue
            f = figures(predictions(t, z))
            rows.append(
                dict(
                    recipe=name,
                    seed=seed,
                    scans=len(t),
                    **{m: as_text(f[m], m) for m in SHOW},
                    value=f['accuracy']['value'],
                    error=f['weighted_error']['value'],
                    auc=f['urgent_auc']['value'],
                )
            )
    df = pd.DataFrame(rows)
    if not len(df):
        return 'No seed is complete yet.'
    mean = df.groupby('recipe', sort=False)[['value', 'error', 'auc']].mean()
    return (
        df.drop(columns=['value', 'error', 'auc']).to_string(index=False)
        + '\n'
        + '\n'.join(
            f'{n}: mean accuracy {r.value:.1%}, weighted error {r.error:.1%}, urgent AUC {r.auc:.4f}'
            for n, r in mean.iterrows()
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--out', type=Path, default=Path('oct-out-recipes'))
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--members', type=int, default=len(ARCHS))
    p.add_argument('--table', action='store_true')
    a = p.parse_args()
    quiet()
    a.out.mkdir(exist_ok=True, parents=True)
    t = scan_table(a.data)
    t = t[(t.folder != 'test') & (t.error == '')].reset_index(drop=True)
    if not a.table:
        for i, arch in enumerate(ARCHS[: a.members]):
            for seed in range(a.seeds):
                for k, (df, held) in enumerate(folds(t, a.folds, seed)):
                    f, begun = a.out / f'{arch}-{seed}-{k}.npy', time.time()
                    if f.exists():
                        continue
                    o = train_by('fast', df, a.data, arch, seed=1000 * seed + 10 * k + i)
                    packed = pack(df, a.data, None, o.info['size'], o.info['view'])
                    z = logits(o, packed, held)
                    np.save(f, z)
                    right = np.mean(z.argmax(1) == df.label.map(CLASSES.index).to_numpy()[held])
                    print(
                        f'{arch}, seed {seed}, fold {k + 1}: head alone {o.history.valid_accuracy[0]:.1%}, fine-tuned '
                        f'{right:.1%} ({time.time() - begun:.0f} s)',
                        flush=True,
                    )
    print(table(t, a))


if __name__ == '__main__': main()
