"""Does the pack keep a GPU busy? End-to-end training against the same loop fed one fixed batch from device memory.

    python bench/gpu_training.py [--arch resnet50] [--size 224] [--bs 256] [--scans 83484] [--steps 100] [--repeat 5] [--compile] [--json FILE]

Synthetic pixels in a memory-mapped pack (83,484 scans at 224 pixels: 4.2 GB in a temporary folder), random weights; what a step costs does
not depend on what is on the scans. Both sides run fastai's loop with the recipe's precision, channels last and optimiser; the fixed batch is
neither loaded nor augmented. Rates are medians of `repeat` paired runs of `steps` steps each, after a warm-up. Prints scans per second of both, their ratio
(wanted: 90 % or more), the seconds that an epoch of all scans takes (wanted: 40 or less on an H200), and the peak memory. Not yet measured.
"""
import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from oct_classify.bench import step_rate
from oct_classify.core import CLASSES, quiet
from oct_classify.network import network
from oct_classify.pack import _Growing, open_pack, packed_loaders
from oct_classify.train import Recipe, callbacks, keep_memory, oct_learner, precision_for, this_device, to_device_fast


def synthetic_pack(folder, n, size):
    "A pack of `n` scans without files"
    block = np.random.default_rng(0).integers(0, 255, (1000, size, size), dtype=np.uint8)
    with _Growing(folder, '', n, (size, size)) as g:
        for i in range(0, n, 1000): g.add(block[:n-i])
    t = pd.DataFrame(dict(path=[f'{i}' for i in range(n)], sha256=[f'{i}' for i in range(n)], label=[CLASSES[i%4] for i in range(n)], error=''))
    g.finish(t, size=(size, size), view='whole')
    return open_pack(folder)


class Fixed:
    "A loader that hands out one batch of device memory again and again"
    def __init__(self, dl): self.batch, self.n, self.dataset, self.device = dl.one_batch(), len(dl), dl.dataset, dl.device
    def __len__(self): return self.n
    def __iter__(self): return (self.batch for _ in range(self.n))


def rate(packed, arch, recipe, steps, fixed):
    dev = this_device()
    net = to_device_fast(network(arch, size=packed.size), dev)
    if recipe.compile: net.body.compile()
    dls = packed_loaders(packed, packed.table, packed.table[:8], bs=recipe.bs, augment=recipe.augment, device=dev)
    learn = oct_learner(dls, net, recipe)
    learn.add_cbs(callbacks(recipe, net, dls))
    learn.unfreeze()
    if fixed: learn.dls.loaders[0] = Fixed(dls.train)
    return step_rate(learn, steps)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arch', default='resnet50'); p.add_argument('--size', type=int, default=224); p.add_argument('--bs', type=int, default=256)
    p.add_argument('--scans', type=int, default=83_484); p.add_argument('--steps', type=int, default=100); p.add_argument('--repeat', type=int, default=5)
    p.add_argument('--compile', action='store_true'); p.add_argument('--json')
    a = p.parse_args()
    quiet()
    keep_memory()
    recipe, dev = Recipe(bs=a.bs, compile=a.compile), this_device()
    with tempfile.TemporaryDirectory() as d:
        packed = synthetic_pack(Path(d), a.scans, a.size)
        rates = [(rate(packed, a.arch, recipe, a.steps, False), rate(packed, a.arch, recipe, a.steps, True)) for _ in range(a.repeat)]
    ours, fixed = [statistics.median(o) for o in zip(*rates)]
    cuda = dev.type == 'cuda'
    out = dict(arch=a.arch, size=a.size, bs=a.bs, precision=precision_for(network(a.arch, size=64), dev), compiled=a.compile, scans_per_second=round(ours, 1), fixed_batch=round(fixed, 1),
        ratio=round(statistics.median(x/y for x, y in rates), 3), seconds_per_epoch=round(a.scans/ours, 1), scans=a.scans, peak_gb=round(torch.cuda.max_memory_allocated()/1e9, 2) if cuda else None,
        hardware=f'{os.cpu_count()} CPU cores, {torch.cuda.get_device_name() if cuda else "no GPU"}', torch=torch.__version__, repeat=a.repeat)
    print(json.dumps(out, indent=1))
    if a.json: Path(a.json).write_text(json.dumps(out, indent=1)+'\n')


if __name__ == '__main__': main()
