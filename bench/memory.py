"""Memory of a training on more scans than fit: one epoch over 200,000 synthetic scans of 224 pixels (10 GB on disk).

    python bench/memory.py [--scans 200000] [--size 224] [--arch test_byobnet] [--folder DIR]

Prints the peak resident memory of the process (mapped pages would count too) and the scans per second.
The network is tiny, so that what is measured is the feeding; add its own memory for a larger one.
"""
import argparse
import resource
import tempfile
import time
from pathlib import Path

from gpu import synthetic_pack
from oct_classify.core import quiet
from oct_classify.training.network import network
from oct_classify.training.pack import packed_loaders
from oct_classify.training.callbacks import callbacks
from oct_classify.training.learner import fine_tune, keep_memory, oct_learner, to_device_fast
from oct_classify.training.recipes import Options


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--scans', type=int, default=200_000)
    p.add_argument('--size', type=int, default=224)
    p.add_argument('--arch', default='test_byobnet')
    p.add_argument('--folder')
    a = p.parse_args()
    quiet()
    keep_memory()
    with tempfile.TemporaryDirectory(dir=a.folder) as d:
        packed = synthetic_pack(Path(d), a.scans, a.size)
        options = Options(epochs=1, bs=64)
        net = to_device_fast(network(a.arch, size=a.size), 'cpu')
        dls = packed_loaders(packed, packed.table, packed.table[:64], bs=options.bs)
        begun = time.time()
        fine_tune(oct_learner(dls, net, options), options, callbacks(options, net, dls, True))
        took = time.time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f'{a.scans:,} scans of {a.size} pixels ({a.scans * a.size**2 / 1e9:.1f} GB), one epoch: peak resident memory '
        f'{peak:.2f} GB, {a.scans / took:.0f} scans/s'
    )


if __name__ == '__main__': main()
