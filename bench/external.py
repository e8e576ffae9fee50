"""Bundles on scans of another hospital, which played no part in training: as they are, and with greys or speckle
matched to the training scans.

    python bench/external.py NEH BUNDLE… --like DATA

NEH holds AMD, DME and NORMAL. AMD there is CNV or drusen, so a bundle's CNV and DRUSEN are added up. Matching looks
at pixels only, never at a label:
`grey` gives each scan the mean distribution of greys of the training scans in DATA; `speckle` blurs each scan until
its grain is no stronger than theirs; `both` does both.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from oct_classify.core import quiet
from oct_classify.evaluation.figures import as_text, figures
from oct_classify.inference.model import OctModel
from oct_classify.data.prepare import prepare_many

SIGMAS = np.arange(0, 2.01, .1)


def quantiles(px):
    "Mean quantile function of greys (256,)"
    return np.mean([np.quantile(p, np.linspace(0, 1, 256)) for p in px], 0)


def grain(p):
    "Median local deviation over median local mean, where it is bright: speckle, not layers"
    f = p.astype(np.float32)
    mean = ndimage.uniform_filter(f, 3)
    sd = np.sqrt(np.maximum(ndimage.uniform_filter(f*f, 3)-mean*mean, 0))
    bright = mean >= np.quantile(mean, .7)
    return np.median(sd[bright]/(mean[bright]+1))


def grey(p, target):
    "One scan with the distribution of greys `target`"
    rank = np.searchsorted(np.sort(p.ravel()), np.arange(256), side='right')/p.size
    return np.interp(rank, np.linspace(0, 1, 256), target).round().astype(np.uint8)[p]


def speckle(p, target):
    "One scan, blurred until its grain is down to `target`"
    for s in SIGMAS:
        q = ndimage.gaussian_filter(p.astype(np.float32), s) if s else p
        if grain(q) <= target: break
    return np.round(q).astype(np.uint8)


def variants(px, like):
    "{name: pixels}"
    g, n = quantiles(like), np.median([grain(p) for p in like])
    blurred = np.stack([speckle(p, n) for p in px])
    return dict(
        asis=px, grey=np.stack([grey(p, g) for p in px]), speckle=blurred, both=np.stack([grey(p, g) for p in blurred])
    )


def scores(model, px, files):
    "Prediction table of three classes"
    p = pd.DataFrame(model.probs(px), columns=model.classes)
    return pd.DataFrame(
        dict(
            path=[f.name for f in files],
            label=[f.parent.name for f in files],
            p_AMD=p.CNV + p.DRUSEN,
            p_DME=p.DME,
            p_NORMAL=p.NORMAL,
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('neh', type=Path)
    p.add_argument('bundle', type=Path, nargs='+')
    p.add_argument('--like', type=Path, required=True)
    a = p.parse_args()
    quiet()
    files = sorted(f for c in ('AMD', 'DME', 'NORMAL') for f in (a.neh / c).iterdir())
    like = sorted((a.like / 'train').rglob('*.jpeg'))[::4]
    rows = []
    for b in a.bundle:
        m = OctModel.load(b)
        px, seen = [prepare_many(o, m.config['size'], m.config['view'])[0] for o in (files, like)]
        for name, q in variants(px, seen).items():
            rows.append(scores(m, q, files).assign(variant=name, recipe=m.config.get('recipe'), bundle=str(b)))
    df = pd.concat(rows, ignore_index=True)
    for (recipe, variant), g in df.groupby(['recipe', 'variant'], sort=False):
        f = figures(g.assign(patient=g.path))
        each = (
            g.assign(
                ok=g[['p_AMD', 'p_DME', 'p_NORMAL']].to_numpy().argmax(1)
                == g.label.map({'AMD': 0, 'DME': 1, 'NORMAL': 2})
            )
            .groupby('bundle')
            .ok.mean()
        )
        print(
            f"{recipe}, {variant}: accuracy {as_text(f['accuracy'], 'accuracy')} over {len(each)} seeds "
            f"({', '.join(f'{v:.1%}' for v in each)}), macro AUC {as_text(f['macro_auc'], 'macro_auc')}"
        )


if __name__ == '__main__': main()
