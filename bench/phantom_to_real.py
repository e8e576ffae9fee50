"""Train on phantoms alone, test on real scans that nothing was learned from.

    python bench/phantom_to_real.py DATA [--folders train test …] [--phantoms 2000] [--arch …] [--size 224] [--epochs
        2] [--lr 1e-3] [--seed 0]

Prints, for the head alone on frozen ImageNet features and for the fine-tuned network, accuracy and urgent AUC on the
real
scans of each folder and of all together, with the 95 % interval from resampling patients, and the confusion matrix.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from oct_classify.core import *
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.figures import as_text, confusion, figures
from oct_classify.training.network import pretrained
from oct_classify.training.pack import Packed, packed_loaders
from oct_classify.phantoms.phantom import Phantom
from oct_classify.inference.model import OctModel
from oct_classify.data.prepare import as_size, prepare_many
from oct_classify.training.callbacks import callbacks
from oct_classify.training.learner import filled, fine_tune, fit_head, oct_learner
from oct_classify.training.recipes import Options

SHAPES = (
    (496, 512),
    (496, 512),
    (496, 512),
    (496, 768),
)  # as real scans: one in four is wide; the shape does not go with the class


def phantoms(n, seed, size):
    """Prepared pixels and class indices of `n` phantom patients; drawn in portions, so that full-size scans need not
    fit in memory"""

    def draw(i):
        return Phantom(seed, CLASSES[i % 4], patient=i, shape=SHAPES[i // 4 % 4]).image

    parts = [prepare_many([draw(i) for i in range(k, min(n, k + 200))], size, 'whole')[0] for k in range(0, n, 200)]
    return np.concatenate(parts), np.arange(n) % 4


def learner(net, train, valid, recipe):
    """A learner over prepared pixels with their class indices, unchanged from epoch to epoch but for the recipe's
    augmentation"""
    (px, y), n = (np.concatenate(o) for o in zip(train, valid)), len(train[1])
    t = pd.DataFrame(dict(path=[str(i) for i in range(len(y))], label=[CLASSES[i] for i in y], error='')).assign(
        sha256=lambda o: o.path
    )
    dls = packed_loaders(Packed(t, px, px.shape[1:], 'whole'), t[:n], t[n:], bs=recipe.bs, augment=recipe.augment)
    return oct_learner(dls, net, recipe)


def report(net, info, data, table, name):
    m = OctModel(
        net.eval(), dict(info, classes=list(CLASSES), view='whole', temperature=1.0, mirror=True, thresholds={})
    )
    p = m.predict([data / q for q in table.path], table.path).assign(
        label=table.label.values, patient=table.patient.values
    )
    for folder in [*sorted(set(table.folder)), 'all']:
        q = p if folder == 'all' else p[(table.folder == folder).values]
        f = figures(q.reset_index(drop=True))
        print(
            f"{name}, {folder}: accuracy {as_text(f['accuracy'], 'accuracy')}, urgent AUC "
            f"{as_text(f['urgent_auc'], 'urgent_auc')}, {len(q)} scans"
        )
    print(pd.DataFrame(confusion(p), CLASSES, CLASSES).to_string(), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--folders', nargs='+', help='train, val, test; left out: all')
    p.add_argument('--phantoms', type=int, default=2000)
    p.add_argument('--arch', default='tf_efficientnet_lite0')
    p.add_argument('--size', default='224')
    p.add_argument('--epochs', type=int, default=2)
    p.add_argument('--lr', type=float, default=1e-3)
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    quiet()
    begun = time.time()
    t = scan_table(a.data)
    t = t[(t.error == '') & (t.folder.isin(a.folders) if a.folders else True)].reset_index(drop=True)
    train, valid = phantoms(a.phantoms, 2 * a.seed, a.size), phantoms(200, 2 * a.seed + 1, a.size)
    print(f'{a.phantoms} phantoms, seed {a.seed}, drawn and prepared ({time.time() - begun:.0f} s)', flush=True)
    set_seed(a.seed)
    net, info = pretrained(a.arch, 4, a.size)
    info['size'] = list(as_size(a.size))
    options = filled(Options(epochs=a.epochs, lr=a.lr), 'cpu', net)
    learn = learner(net, train, valid, options)
    print(f'head: {fit_head(learn, net):.1%} of 200 unseen phantoms ({time.time() - begun:.0f} s)', flush=True)
    report(net, info, a.data, t, 'head alone')
    if a.epochs:
        fine_tune(learn, options, callbacks(options, net, learn.dls))
        print(
            f'fine-tuned: {learn.recorder.values[-1][-1]:.1%} of 200 unseen phantoms ({time.time() - begun:.0f} s)',
            flush=True,
        )
        report(net, info, a.data, t, f'{a.epochs} epochs')


if __name__ == '__main__': main()
