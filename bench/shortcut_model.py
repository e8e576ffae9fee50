"""What trained models lean on beside the retina: the shortcut check of oct_classify.evaluation.shortcuts on the test
scans of their runs, printed as markdown.

    python bench/shortcut_model.py DATA BUNDLE… [--out DIR] [--seed 0]

Evaluation only: nothing is fitted or chosen. The test scans are those that the bundle's own predictions name as such.
With --out, pictures of the scans
(mistakes, typical and doubtful scans, the map of features, the disturbances) go to that folder.
"""
import argparse
import datetime
import time
from pathlib import Path

import pandas as pd

from oct_classify.core import make_dir, quiet
from oct_classify.evaluation.figures import as_text, check_predictions, figures
from oct_classify.evaluation.errors import (confusion_gallery, embed, lay_out, neighbour_accuracy, plot_embedding,
    plot_top_losses, plot_typical)
from oct_classify.evaluation.shortcuts import plot_disturbances, shortcut_check, shortcut_text
from oct_classify.reporting.report import hardware
from oct_classify.inference.model import OctModel
from oct_classify.data.prepare import prepare_many


def test_scans(bundle):
    "The test rows of a bundle's prediction table"
    t = pd.read_parquet(bundle/'predictions.parquet')
    return check_predictions(t[t.split == 'test'].reset_index(drop=True))


def markdown(t):
    "A table as markdown"
    cell = lambda o: str(o).replace('|', r'\|')
    rows = [list(t.columns), ['---']*t.shape[1], *t.values.tolist()]
    return '\n'.join('| '+' | '.join(map(cell, r))+' |' for r in rows)


def pictures(p, data, model, out):
    "Every figure of the module, to be looked at"
    files = [data/o for o in p.path]
    px, _ = prepare_many(files, model.config['size'], model.config['view'])
    f = embed(model, px)
    xy = lay_out(f)
    near = {k: neighbour_accuracy(o, p.label, p.patient) for k, o in (('features', f), ('map', xy))}
    print('nearest scans of other patients agree:', {k: as_text(o, 'share') for k, o in near.items()})
    figs = dict(
        losses=plot_top_losses(p, data),
        confusions=confusion_gallery(p, data),
        typical=plot_typical(p, data),
        map=plot_embedding(xy, p.label, p.predicted, near['map']),
        disturbances=plot_disturbances(files[::len(files)//6][:6]))
    for name, fig in figs.items():
        if fig: fig.savefig(out/f'{name}.png', dpi=110)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('data', type=Path)
    a.add_argument('bundle', type=Path, nargs='+')
    a.add_argument('--out', type=Path)
    a.add_argument('--seed', type=int, default=0)
    a = a.parse_args()
    quiet()
    print(f'{datetime.date.today()}, {hardware()}')
    for b in a.bundle:
        start, p, model = time.time(), test_scans(b), OctModel.load(b)
        t = shortcut_check(model, [a.data / o for o in p.path], p.label, p.patient, a.seed)
        print(
            f"\n{b}: recipe {model.config.get('recipe')}, {len(p)} scans of {p.patient.nunique()} patients, accuracy "
            f"{as_text(figures(p)['accuracy'], 'accuracy')}; {time.time() - start:.0f} "
            f"s\n\n{markdown(shortcut_text(t))}",
            flush=True,
        )
        if a.out:
            pictures(p, a.data, model, make_dir(a.out / b.parent.name))


if __name__ == '__main__': main()
