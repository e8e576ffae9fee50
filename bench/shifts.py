"""What each choice of training is worth on scans as another clinic may show them, by folds over patients inside train
and val; no scan of the test folder is learned from or predicted.

    python bench/shifts.py DATA [--out DIR] [--only NAME …] [--folds 5] [--seeds 1] [--table]

Each held-out scan is shown as it is and changed as another clinic may show it (`SHIFTS`): noisier, on another display,
magnified across, and flattened, cut out of its frame, noisier and on another display all at once.
`sides` are the left and right halves of healthy scans: the share of them called NORMAL. Logits are kept in DIR, one
file per choice, seed and fold, and the same command goes on where it was.
"""
import argparse, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from recipes import folds

from oct_classify.core import *
from oct_classify.data.prepare import fill_borders, find_retina, prepare_many
from oct_classify.data.scans import scan_table
from oct_classify.inference.model import OctModel
from oct_classify.training.learner import train_by
from oct_classify.training.recipes import Augment

PLAIN = Augment(deep=0, wide=0, bend=0, tone=0, floor=0, blur=0, side=0, speckle=.05)
CHOICES = dict(plain=dict(augment=PLAIN, weights='imagenet'),
               randomised=dict(augment=replace(Augment(), side=0), weights='imagenet'),
               sides=dict(weights='imagenet'), phantoms=dict(weights='phantoms'))


def noisier(g, rng):
    "Fewer averages, and a higher noise floor"
    x = (g/255)**4*np.maximum(0, 1+.5*rng.normal(size=g.shape))+(.22*rng.random())**4*rng.exponential(size=g.shape)
    return (255*x.clip(0, 1)**.25).astype(np.uint8)


def display(g, rng):
    "Brighter or darker mid tones, black lifted"
    return (20*rng.random()+235*(g/255)**rng.choice([.65, 1.5])).astype(np.uint8)


def cut(g):
    "As another clinic's export: 200 rows over the RPE's lower edge, 90 below"
    r = find_retina(g)
    y = int(r.rows(96).mean()*len(g))
    top = min(max(0, y-200), max(0, len(g)-291))
    return g[top:top+291]


def magnified(g, rng):
    w = g.shape[1]
    return np.asarray(Image.fromarray(g[:, w//5:w-w//5]).resize((w, len(g)), Image.BILINEAR))


def flattened(g):
    "Columns moved until the RPE is level"
    y = find_retina(g).rows(g.shape[1])*len(g)
    rows = np.arange(len(g))[:, None]+np.round(y-y.mean()).astype(int)
    return np.take_along_axis(g, rows.clip(0, len(g)-1), 0)


def all_at_once(g, rng): return display(noisier(cut(flattened(g)), rng), rng)


SHIFTS = dict(asis=lambda g, rng: g, noisier=noisier, display=display, magnified=magnified, all=all_at_once)


def shown(paths, name):
    return [SHIFTS[name](fill_borders(read_grey(p)), np.random.default_rng([i, 7])) for i, p in enumerate(paths)]


def halves(paths):
    for p in paths:
        g = fill_borders(read_grey(p))
        w = g.shape[1]
        yield from (g[:, :w//2], g[:, w-w//2:])


def held_out(model, data, h):
    "Logits {shift: (N, K)} of the held-out scans; those of the halves of healthy ones as `sides`"
    size, paths = model.config['size'], [data/p for p in h.path]
    out = {k: model.logits(prepare_many(shown(paths, k), size, 'crop')[0]) for k in SHIFTS}
    for k in ('asis', 'all'): out[f'{k}, flat'] = model.logits(prepare_many(shown(paths, k), size, 'flat')[0])
    healthy = [p for p, c in zip(paths, h.label) if c == 'NORMAL']
    return out | dict(sides=model.logits(prepare_many(list(halves(healthy)), size, 'crop')[0]))


def table(t, a):
    "A row per choice: accuracy by shift, in per cent, all folds and seeds together"
    rows = []
    y = t.label.map(CLASSES.index).to_numpy()
    for f in sorted({o.name.rpartition('-')[0].rpartition('-')[0] for o in a.out.glob('*.npz')}):
        hits = {}
        for seed in range(a.seeds):
            for k, (_, held) in enumerate(folds(t, a.folds, seed)):
                at = a.out/f'{f}-{seed}-{k}.npz'
                if not at.exists(): continue
                z = dict(np.load(at))
                for name in z:
                    right = z[name].argmax(1) == (3 if name == 'sides' else y[held])
                    hits.setdefault(name, []).append(right)
                two = z['asis']+z['asis, flat'], z['all']+z['all, flat']
                for name, v in zip(('asis, both', 'all, both'), two):
                    hits.setdefault(name, []).append(v.argmax(1) == y[held])
        rows.append(dict(choice=f, scans=sum(map(len, hits['asis'])),
                         **{k: round(100*np.concatenate(v).mean(), 1) for k, v in hits.items()}))
    return pd.DataFrame(rows).to_string(index=False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--out', type=Path, default=Path('oct-out-shifts'))
    p.add_argument('--only', nargs='+', default=list(CHOICES))
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--table', action='store_true')
    a = p.parse_args()
    quiet()
    a.out.mkdir(exist_ok=True, parents=True)
    t = scan_table(a.data)
    t = t[(t.folder != 'test') & (t.error == '')].reset_index(drop=True)
    for seed in range(0 if a.table else a.seeds):
        for name in a.only:
            for k, (df, held) in enumerate(folds(t, a.folds, seed)):
                f, begun = a.out/f'{name}-{seed}-{k}.npz', time.time()
                if f.exists(): continue
                o = train_by('fast', df, a.data, seed=1000*seed+10*k, **CHOICES[name])
                took = time.time()-begun
                m = OctModel(o.net, dict(o.info, temperature=1., mirror=True, thresholds={}))
                z = held_out(m, a.data, df.iloc[held])
                np.savez(f, **z)
                y = df.label.map(CLASSES.index).to_numpy()[held]
                print(name, seed, k, f'{took:.0f} + {time.time()-begun-took:.0f} s',
                      {s: round(100*np.mean(v.argmax(1) == (3 if s == 'sides' else y)), 1) for s, v in z.items()},
                      flush=True)
    print(table(t, a))


if __name__ == '__main__': main()
