"""Cross-validate the training recipe over patients, inside train and val; no scan of the test folder is learned from
or predicted.

    python bench/cross_validate.py DATA [--folds 5] [--only 2] [--arch …] [--size 224] [--view crop] [--epochs 4]
        [--lr 1e-3] [--moving-bn] [--seed 0]

Prints one line per fold and, last, the accuracy over all held-out scans of the head alone and of the fine-tuned
network,
with the 95 % interval from resampling patients.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from oct_classify.core import quiet
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.figures import as_text, figures
from oct_classify.inference.model import OctModel
from oct_classify.data.split import components
from oct_classify.training.learner import train


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--only', type=int, help='run the first so many folds')
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--size', default='224')
    p.add_argument('--view', default='crop')
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--lr', type=float, default=1e-3)
    p.add_argument('--moving-bn', action='store_true')
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    quiet()
    t = scan_table(a.data)
    t = t[(t.folder != 'test') & (t.error == '')].reset_index(drop=True)
    cv = StratifiedGroupKFold(a.folds, shuffle=True, random_state=a.seed)
    preds, heads = [], []
    for k, (_, held) in enumerate(cv.split(t, t.label, components(t))):
        if a.only and k >= a.only:
            break
        begun = time.time()
        df = t.assign(split=np.where(np.isin(np.arange(len(t)), held), 'valid', 'train'))
        o = train(
            df,
            a.data,
            a.arch,
            a.size,
            a.view,
            epochs=a.epochs,
            lr=a.lr,
            seed=a.seed + k,
            fixed_bn=False if a.moving_bn else None,
        )
        h = df.iloc[held]
        m = OctModel(o.net, dict(o.info, temperature=1.0, mirror=True, thresholds={}))
        preds.append(
            m.predict([a.data / q for q in h.path], h.path).assign(label=h.label.values, patient=h.patient.values)
        )
        heads += [o.history.valid_accuracy[0]] * len(held)
        right = np.mean(preds[-1].predicted == preds[-1].label)
        print(
            f'fold {k + 1}: {len(held)} scans, head alone {heads[-1]:.1%}, fine-tuned {right:.1%} '
            f'({time.time() - begun:.0f} s)',
            flush=True,
        )
    f = figures(pd.concat(preds, ignore_index=True))
    print(
        f"head alone {np.mean(heads):.1%}, fine-tuned {as_text(f['accuracy'], 'accuracy')}, weighted error "
        f"{as_text(f['weighted_error'], 'weighted_error')}, urgent AUC {as_text(f['urgent_auc'], 'urgent_auc')}, "
        f"{f['accuracy']['n']} scans"
    )


if __name__ == '__main__': main()
