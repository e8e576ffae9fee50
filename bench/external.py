"""Bundles on scans of another hospital, which played no part in training: as they are, by other views, and adapted.

    python bench/external.py NEH BUNDLE… [--like DATA] [--draws 30] [--json FILE]

NEH holds AMD, DME and NORMAL. AMD there is CNV or drusen, so a bundle's CNV and DRUSEN are added up. Every scan is
answered by itself, forced. With --like, `grey` gives each scan the mean distribution of greys of the training scans in
DATA, and the mean of three views is counted too. Several bundles are seeds of one recipe: their answers are counted
together, and intervals resample scans, since patients are not known. `adapted` draws 10 labelled scans per class, fits
the last layer, and tests on all others; `after` learns from half of the scans, without labels, what scans look like.
"""
import argparse, json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from oct_classify.adapt import best_refit, look_at, refused, refused_by_halves, standardised
from oct_classify.core import quiet
from oct_classify.data.prepare import prepare_many
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.calibration import ece
from oct_classify.evaluation.figures import as_text, check_predictions, figures
from oct_classify.inference.model import OctModel, meanings, merged


def table(t, p, labels, seed):
    columns = {f'p_{k}': p[:, i] for i, k in enumerate(labels)}
    return t[['label']].assign(path=t.path+f' {seed}', patient=t.path, **columns)


def right(t):
    "Which scans (N,) of a table are called what they are"
    return t.filter(like='p_').to_numpy().argmax(1) == t.label.map(list(LABELS).index).to_numpy()


def quantiles(px):
    "Mean quantile function of greys (256,)"
    return np.mean([np.quantile(p, np.linspace(0, 1, 256)) for p in px], 0)


def grey(p, target):
    "One scan with the distribution of greys `target`"
    rank = np.searchsorted(np.sort(p.ravel()), np.arange(256), side='right')/p.size
    return np.interp(rank, np.linspace(0, 1, 256), target).round().astype(np.uint8)[p]


def views(model, files, like):
    "Logits {view: (N, K)}"
    px = {v: prepare_many(files, model.looks[0], v)[0] for v in ('crop', 'flat')}
    if like is not None:
        target = quantiles(prepare_many(like, model.looks[0], 'crop')[0])
        px['grey'] = np.stack([grey(p, target) for p in px['crop']])
    z = {v: model.logits(o) for v, o in px.items()}
    if like is not None: z['crop, grey and flat'] = sum(z.values())/3
    return z | {'crop and flat': (z['crop']+z['flat'])/2}


def said(name, parts):
    both = check_predictions(pd.concat(parts, ignore_index=True))
    f = figures(both)
    each = ', '.join(f'{100*right(o).mean():.1f}' for o in parts)
    by = pd.Series(right(both)).groupby(both.label).mean()
    print(f"{name}: {as_text(f['accuracy'], 'accuracy')} (each {each}); "
          f"mean AUC {as_text(f['macro_auc'], 'macro_auc')}; "
          f"ECE {as_text(ece(both), 'ece')}; right of {', '.join(f'{k} {v:.0%}' for k, v in by.items())}", flush=True)
    return dict(accuracy=f['accuracy'], macro_auc=f['macro_auc'], each=each, by=by.to_dict())


def drawn(label, n, rng):
    "Mask of `n` scans of each label"
    out = np.zeros(len(label), bool)
    for c in sorted(set(label)): out[rng.choice(np.flatnonzero(label == c), n, replace=False)] = True
    return out


def adapted(model, seen, labels, draws, n=10):
    "Accuracy on the scans that were not drawn, before and after, for each draw"
    x, z = standardised(model.net, seen.features), seen.logits.astype(float)
    label = seen.table.label.to_numpy()
    y = np.array([list(labels).index(o) for o in label])
    allowed = np.stack([labels[o] for o in label])
    hits = []
    for i in range(draws):
        a = drawn(label, n, np.random.default_rng(i))
        w, b = best_refit(x[a], z[a], allowed[a], np.arange(a.sum()))
        new = z.mean(1)+x.mean(1)@w+b
        t = model.config['temperature']
        hits.append([(merged(softmax(o/t, 1), labels).argmax(1) == y)[~a].mean() for o in (z.mean(1), new)])
    return np.array(hits)


def main():
    global LABELS
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('neh', type=Path)
    p.add_argument('bundle', type=Path, nargs='+')
    p.add_argument('--like', type=Path)
    p.add_argument('--draws', type=int, default=30)
    p.add_argument('--json', type=Path)
    a = p.parse_args()
    quiet()
    like = a.like and sorted((a.like/'train').rglob('*.jpeg'))[::4]
    parts, hits, before, after = {}, [], [], []
    for seed, b in enumerate(a.bundle):
        model = OctModel.load(b, 'torch')
        LABELS = labels = meanings('AMD=CNV+DRUSEN', model.classes)
        t = scan_table(a.neh, tuple(labels))
        files = [a.neh/o for o in t.path]
        z = views(model, files, like)
        for v in z: parts.setdefault(v, []).append(table(t, merged(model.calibrated(z[v]), labels), labels, seed))
        seen = look_at(model, a.neh, t)
        if len(seen.table) < len(t): print(b, 'whole:', len(t)-len(seen.table))
        hits.append(adapted(model, seen, labels, max(1, a.draws)))
        before.append(refused(model.inputs, seen).mean())
        after.append(refused_by_halves(seen).mean())
    out = {v: said(v, o) for v, o in parts.items()}
    h = 100*np.concatenate(hits)
    low, high = np.quantile(h[:, 1], (.025, .975))
    print(f'adapted to 10 of each class, {a.draws} draws, {len(hits)} seeds: {h[:, 0].mean():.1f} before, '
          f'{h[:, 1].mean():.1f} after (middle 95 % of draws {low:.1f}–{high:.1f}); each seed '
          + ', '.join(f'{100*o[:, 1].mean():.1f}' for o in hits))
    print('refused as it is:', [f'{o:.1%}' for o in before], 'after half unlabelled:', [f'{o:.1%}' for o in after])
    if a.json: a.json.write_text(json.dumps(out, indent=1))


if __name__ == '__main__': main()
