"""Train on drawings alone, test on real scans: by the product's own path, recipe `fast` on folders of phantoms.

    python bench/phantom_to_real.py DATA [--patients 100] [--seeds 3] [--size 160x240] [--shape 248x256]
        [--epochs N] [--out DIR]

With the defaults this trains what `oct-classify demo` trains. Prints the accuracy on all scans in DATA for each seed,
of all seeds together, and of their mean, with 95 % intervals from resampling patients, and what is called what. One
patient in four is drawn half as wide again, as thirty-degree scans are. The bundle of the first seed is kept in DIR.
"""
import argparse, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd

from oct_classify.core import *
from oct_classify.data.prepare import as_size, prepare_many
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.figures import as_text, check_predictions, confusion, figures
from oct_classify.inference.bundle import save_bundle
from oct_classify.inference.model import OctModel
from oct_classify.phantoms.phantom import phantom_folder
from oct_classify.training.learner import train_by


def drawn(folder, patients, seed, shape):
    "A split table of phantoms, all for training"
    wide = patients//4
    phantom_folder(folder/'narrow', patients-wide, 0, 0, seed=seed, shape=shape)
    if wide: phantom_folder(folder/'wide', wide, 0, 0, seed=seed+1000, shape=(shape[0], shape[1]*3//2))
    parts = [scan_table(folder/o).assign(path=lambda t: o+'/'+t.path, patient=lambda t: o+t.patient)
             for o in ('narrow', 'wide')[:1+(wide > 0)]]
    return pd.concat(parts, ignore_index=True).assign(split='train')


def answers(t, z):
    p = np.exp(z-z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    t = t[['path', 'label', 'patient']].assign(**{f'p_{c}': p[:, i] for i, c in enumerate(CLASSES)})
    return check_predictions(t)


def shown(t):
    f = figures(t)
    return ', '.join(f'{k.replace("_", " ")} {as_text(f[k], k)}' for k in ('accuracy', 'weighted_error', 'urgent_auc'))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--patients', type=int, default=100)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--size', default='160x240')
    p.add_argument('--shape', default='248x256')
    p.add_argument('--epochs', type=int)
    p.add_argument('--out', type=Path, default=Path('oct-out-phantoms'))
    a = p.parse_args()
    quiet()
    t = scan_table(a.data)
    t = t[t.error == ''].reset_index(drop=True)
    every = []
    for seed in range(42, 42+a.seeds):
        begun = time.time()
        with tempfile.TemporaryDirectory() as d:
            df = drawn(Path(d), a.patients, seed, as_size(a.shape))
            how = dict(epochs=a.epochs) if a.epochs else {}
            o = train_by('fast', df, d, size=a.size, seed=seed, weights='imagenet', **how)
        took = time.time()-begun
        if seed == 42: save_bundle(a.out/'bundle', o.net, o.info)
        m = OctModel(o.net, dict(o.info, temperature=1., mirror=True, thresholds={}))
        if not every: px = prepare_many([a.data/q for q in t.path], *m.looks)[0]
        every.append(m.logits(px))
        print(f'seed {seed}, {len(df)} phantoms, {took:.0f} s: {shown(answers(t, every[-1]))}', flush=True)
    np.save(a.out/'logits.npy', np.array(every))
    one = [answers(t, z).assign(path=t.path+f' {i}') for i, z in enumerate(every)]
    print(f'each seed alone, together: {shown(pd.concat(one, ignore_index=True))}')
    print(f'mean of the seeds: {shown(answers(t, np.mean(every, 0)))}')
    print(pd.DataFrame(sum(confusion(o) for o in one), CLASSES, CLASSES).to_string())


if __name__ == '__main__': main()
