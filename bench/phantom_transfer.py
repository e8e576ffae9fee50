"""Does training on phantoms help a network that then sees ten real scans of each class?

    python bench/phantom_transfer.py DATA [--folders train test …] [--arch resnet18] [--size 96] [--phantoms 1000]
        [--pretrain 3] [--epochs 20] [--scans 10] [--seeds 5]

Per seed: a network starts at random; a copy is trained on phantoms first; both are then fitted alike on the same ten
real scans of
each class, and tested on the real scans of all other patients. Prints accuracy and urgent AUC of both per seed, and
last the
mean difference with its 95 % interval over seeds (Student's t).
"""
import argparse
import copy
import time
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score
from phantom_to_real import learner, phantoms

import torch
from oct_classify.core import *
from oct_classify.data.scans import scan_table
from oct_classify.training.network import network
from oct_classify.data.prepare import prepare_many
from oct_classify.data.split import components
from oct_classify.training.callbacks import callbacks
from oct_classify.training.learner import filled, fine_tune
from oct_classify.training.recipes import Options


def few(t, k, seed):
    "Rows of `k` scans per class, each of another patient"
    rng = np.random.default_rng(seed)
    t = t.assign(group=components(t)).sample(frac=1, random_state=int(rng.integers(2**31)))
    chosen = []
    for c in CLASSES:
        free = t[(t.label == c) & ~t.group.isin(t.group.loc[chosen])].drop_duplicates('group')
        chosen += list(free.index[:k])
    return np.array(chosen), ~t.sort_index().group.isin(t.group.loc[chosen]).values


def fit(net, train, epochs, lr, bs=8):
    "Train all layers of a copy of `net`; batch-norm statistics move with the batches, as it started at random"
    net = copy.deepcopy(net)
    options = filled(Options(epochs=epochs, lr=lr, bs=bs, fixed_bn=False), 'cpu', net)
    learn = learner(net, train, tuple(o[:bs] for o in train), options)
    fine_tune(learn, options, callbacks(options, net, learn.dls, random_start=True))
    return net.eval()


@torch.inference_mode()
def score(net, px, y):
    p = torch.cat([(net(b).softmax(1)+net(b.flip(-1)).softmax(1))/2 for b in torch.from_numpy(px).split(64)]).numpy()
    return np.array([(p.argmax(1) == y).mean(), roc_auc_score(y < 2, p[:, :2].sum(1))])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--folders', nargs='+', help='train, val, test; left out: all')
    p.add_argument('--arch', default='resnet18')
    p.add_argument('--size', default='96')
    p.add_argument('--phantoms', type=int, default=1000)
    p.add_argument('--pretrain', type=int, default=3, help='epochs on phantoms')
    p.add_argument('--epochs', type=int, default=20, help='epochs on real scans')
    p.add_argument('--scans', type=int, default=10, help='real scans per class')
    p.add_argument('--seeds', type=int, default=5)
    a = p.parse_args()
    quiet()
    t = scan_table(a.data)
    t = t[(t.error == '') & (t.folder.isin(a.folders) if a.folders else True)].reset_index(drop=True)
    px, y = prepare_many([a.data / q for q in t.path], a.size, 'whole')[0], t.label.map(CLASSES.index).values
    got = []
    for seed in range(a.seeds):
        begun = time.time()
        chosen, others = few(t, a.scans, seed)
        set_seed(seed)
        start = network(a.arch, 4, a.size)
        taught = fit(start, phantoms(a.phantoms, 100 + seed, a.size), a.pretrain, 3e-3, bs=16)
        both = [score(fit(n, (px[chosen], y[chosen]), a.epochs, 1e-3), px[others], y[others]) for n in (start, taught)]
        got.append(both)
        (ra, ru), (pa, pu) = both
        print(
            f'seed {seed}: random start {ra:.1%}, urgent AUC {ru:.3f}; phantoms first {pa:.1%}, {pu:.3f}; before real '
            f'scans {score(taught, px[others], y[others])[0]:.1%}; {others.sum()} scans of other patients '
            f'({time.time() - begun:.0f} s)',
            flush=True,
        )
    d = np.diff(np.array(got), axis=1)[:, 0]
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(0, ddof=1) / np.sqrt(len(d)) if len(d) > 1 else d[0] * np.nan
    print(
        f'mean: random start {np.mean(got, 0)[0, 0]:.1%}, phantoms first {np.mean(got, 0)[1, 0]:.1%}; gain in '
        f'accuracy {d.mean(0)[0]:+.1%} (95 % interval {d.mean(0)[0] - half[0]:+.1%} to '
        f'{d.mean(0)[0] + half[0]:+.1%}), '
        f'in urgent AUC {d.mean(0)[1]:+.3f} ({d.mean(0)[1] - half[1]:+.3f} to {d.mean(0)[1] + half[1]:+.3f}), '
        f'{len(d)} seeds'
    )


if __name__ == '__main__': main()
