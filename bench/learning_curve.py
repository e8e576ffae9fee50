"""Accuracy by number of training scans: `--recipe fast` against plain fastai fine-tuning of the same network in the
same time.

    python bench/learning_curve.py DATA [--out DIR] [--counts 10,25,50,100,142] [--seeds 3] [--weights FILE] [--table]

Both learn from the same scans of the train folder, drawn by patient, so many of each class, and predict the test
folder; nothing is chosen by these figures.
Plain fastai is `Resize(224)`, `aug_transforms()`, `vision_learner`, `fine_tune`, with the same ImageNet weights; it
gets as many epochs as fit into the time
that ours took, loading, packing and fitting included, and never fewer than one frozen and one unfrozen epoch. The
same command goes on where it was.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.vision.all import ImageDataLoaders, Normalize, Resize, aug_transforms, vision_learner

from oct_classify.core import CLASSES, quiet, set_seed
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.figures import as_text, figures
from oct_classify.training.network import FALLBACK, pretrained
from oct_classify.inference.model import OctModel
from oct_classify.training.learner import train_by
from oct_classify.training.recipes import enough


def drawn(t, n, seed):
    "`n` scans of each class of the train folder, patient by patient; the test folder whole"
    train = t[t.folder == 'train']
    order = np.random.default_rng(seed).permutation(train.patient.unique())
    train = train.assign(order=train.patient.map({p: i for i, p in enumerate(order)})).sort_values(['order', 'path'])
    pick = train.groupby('label').head(n).index
    return pd.concat([t.loc[pick].assign(split='train'), t[t.folder == 'test'].assign(split='test')]).sort_values(
        'path', ignore_index=True
    )


def ours(df, data, seed, weights=None):
    "Probabilities of the test scans, and seconds without predicting them"
    begun = time.time()
    o = train_by('fast', df, data, seed=seed, **(dict(weights=weights) if weights else {}))
    took = time.time()-begun
    h = df[df.split == 'test']
    m = OctModel(o.net, dict(o.info, temperature=1., mirror=True, thresholds={}))
    return m.predict([data/q for q in h.path], h.path)[[f'p_{c}' for c in CLASSES]].to_numpy(), took


def plain(df, data, seed, seconds):
    "The same by plain fastai, in about `seconds`"
    set_seed(seed)
    begun, tr = time.time(), df[df.split == 'train']
    few = tr.groupby('label').head(1)  # fastai wants a validation side; it decides nothing
    rows = pd.concat([tr.assign(is_valid=False), few.assign(is_valid=True)])[['path', 'label', 'is_valid']]
    dls = ImageDataLoaders.from_df(
        rows,
        data,
        valid_col='is_valid',
        item_tfms=Resize(224),
        batch_tfms=[*aug_transforms(), Normalize.from_stats([0.5] * 3, [0.5] * 3)],
        bs=min(64, len(tr)),
        num_workers=2,
    )
    learn = vision_learner(dls, FALLBACK, pretrained=False, normalize=False)
    learn.model[0].model.load_state_dict(pretrained(FALLBACK, size=224)[0].body.model.state_dict())
    with learn.no_bar(), learn.no_logging():
        t = time.time()
        learn.freeze()
        learn.fit_one_cycle(1, slice(2e-3), pct_start=0.99)  # as fine_tune begins
        frozen = time.time() - t
        epochs = max(1, int((seconds - (time.time() - begun)) / (1.4 * frozen)))
        learn.unfreeze()
        learn.fit_one_cycle(epochs, slice(1e-3 / 100, 1e-3), pct_start=0.3, div=5.0)  # and goes on
    took = time.time() - begun
    h = df[df.split == 'test']
    p = learn.get_preds(dl=dls.test_dl([data / q for q in h.path]))[0].numpy()
    return p[:, [list(dls.vocab).index(c) for c in CLASSES]], took, epochs


def table(out):
    files = sorted(out.glob('*.parquet'))
    df = pd.concat([pd.read_parquet(f) for f in files], ignore_index=True)
    rows = []
    for (n, way), g in df.groupby(['n', 'way']):
        f = figures(g)
        each = (
            g.assign(ok=g[[f'p_{c}' for c in CLASSES]].to_numpy().argmax(1) == g.label.map(CLASSES.index))
            .groupby('seed')
            .ok.mean()
        )
        rows.append(
            {
                'scans per class': n,
                'way': way,
                'seeds': len(each),
                'accuracy': as_text(f['accuracy'], 'accuracy'),
                'each seed': ', '.join(f'{v:.0%}' for v in each),
                'seconds': f'{g.groupby("seed").seconds.first().mean():.0f}',
                'epochs': g.epochs.iloc[0],
            }
        )
    return pd.DataFrame(rows).to_string(index=False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--out', type=Path, default=Path('oct-out-curve'))
    p.add_argument('--counts', default='10,25,50,100,142')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--weights', help="instead of the recipe's own; plain fastai is then left out")
    p.add_argument('--table', action='store_true')
    a = p.parse_args()
    quiet()
    a.out.mkdir(exist_ok=True, parents=True)
    if not a.table:
        t = scan_table(a.data)
        t = t[t.error == '']
        for seed in range(a.seeds):
            for n in map(int, a.counts.split(',')):
                f = a.out / f'{n}-{seed}.parquet'
                if f.exists():
                    continue
                df = drawn(t, n, seed)
                h = df[df.split == 'test'][['path', 'label', 'patient']].reset_index(drop=True)
                y = h.label.map(CLASSES.index).to_numpy()
                z, took = ours(df, a.data, seed, a.weights)
                w, spent, epochs = plain(df, a.data, seed, took) if not a.weights else (z, 0, 0)
                both = [
                    h.assign(
                        **{f'p_{c}': q[:, i] for i, c in enumerate(CLASSES)},
                        way=way,
                        seconds=s,
                        epochs=e,
                        n=n,
                        seed=seed,
                    )
                    for way, q, s, e in (
                        ('fast', z, took, enough((df.split == 'train').sum())),
                        ('plain fastai', w, spent, epochs),
                    )[: 1 if a.weights else 2]
                ]
                pd.concat(both).to_parquet(f)
                ours_right, plain_right = (f'{np.mean(o.argmax(1) == y):.1%}' for o in (z, w))
                other = f', plain fastai {plain_right} ({spent:.0f} s, {epochs} epochs)' if epochs else ''
                print(f'seed {seed}, {n} per class: fast {ours_right} ({took:.0f} s){other}', flush=True)
    print(table(a.out))


if __name__ == '__main__': main()
