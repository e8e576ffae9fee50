"""Cross-validate the recipe `fast` over patients, inside train and val; no scan of the test folder is learned from or
predicted.

    python bench/recipes.py DATA [--out DIR] [--arch NAME] [--folds 5] [--seeds 3] [--table]

Each seed deals the patients into folds anew and trains anew. Predictions are kept in DIR, one file per network, seed
and fold, and the same command goes on where it was; --table only prints what is there, for seeds that are complete.
"""
import argparse, time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from oct_classify.core import CLASSES, quiet
from oct_classify.data.scans import scan_table
from oct_classify.data.split import components
from oct_classify.evaluation.comparison import over_seeds
from oct_classify.evaluation.figures import as_text, figures
from oct_classify.inference.model import OctModel
from oct_classify.training.learner import train_by
from oct_classify.training.pack import pack
from oct_classify.training.recipes import RECIPES

SHOW = ('accuracy', 'weighted_error', 'urgent_auc', 'macro_auc')


def folds(t, k, seed):
    "Split tables: the fold is `valid`, which decides nothing in this recipe"
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


def gather(t, a, seed):
    "Logits over all folds, or None where a fold is missing"
    z = np.full((len(t), len(CLASSES)), np.nan)
    for k, (_, held) in enumerate(folds(t, a.folds, seed)):
        file = a.out/f'{a.arch}-{seed}-{k}.npy'
        if not file.exists(): return None
        z[held] = np.load(file)
    return z


def table(t, a):
    "One line per seed, and one for all"
    each = [predictions(t, z) for seed in range(a.seeds) if (z := gather(t, a, seed)) is not None]
    if not each: return 'No seed is complete yet.'
    rows = [dict(seed=i, scans=len(o), **{m: as_text(figures(o)[m], m) for m in SHOW}) for i, o in enumerate(each)]
    if len(each) > 1:
        both = over_seeds(each)
        rows.append(dict(seed='all', scans=len(t), **{m: as_text(both[m], m) for m in SHOW if m in both}))
    return pd.DataFrame(rows).to_string(index=False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--out', type=Path, default=Path('oct-out-recipes'))
    p.add_argument('--arch', default=RECIPES['fast'].arch)
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--table', action='store_true')
    a = p.parse_args()
    quiet()
    a.out.mkdir(exist_ok=True, parents=True)
    t = scan_table(a.data)
    t = t[(t.folder != 'test') & (t.error == '')].reset_index(drop=True)
    for seed in range(0 if a.table else a.seeds):
        for k, (df, held) in enumerate(folds(t, a.folds, seed)):
            f, begun = a.out/f'{a.arch}-{seed}-{k}.npy', time.time()
            if f.exists(): continue
            o = train_by('fast', df, a.data, a.arch, seed=1000*seed+10*k)
            z = logits(o, pack(df, a.data, None, o.info['size'], o.info['view']), held)
            np.save(f, z)
            right = np.mean(z.argmax(1) == df.label.map(CLASSES.index).to_numpy()[held])
            print(f'{a.arch}, seed {seed}, fold {k+1}: head alone {o.history.valid_accuracy[0]:.1%}, fine-tuned '
                  f'{right:.1%} ({time.time()-begun:.0f} s)', flush=True)
    print(table(t, a))


if __name__ == '__main__': main()
