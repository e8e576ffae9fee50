"""How fast this machine loads, trains and answers, as ratios to plain fastai on the same machine in the same run.

    python bench/speed.py [--only loader,augmented,train,predict] [--repeat 5] [--json FILE]

Takes the scans of OCT_DATA, or draws 400 phantoms. Both sides get the same files at 224 pixels, with the files in the
operating system's cache;
they run in turns, and ratios are medians over pairs, as seconds alone say more about the neighbours on a rented
machine than about the software.

loader      fastai's `ImageDataLoaders` with `Resize(224)` and its default workers, against a `PackedDL`, from the
second epoch on
augmented   the same with `aug_transforms()` and `Augment()`, both on the CPU
train       steps of all layers of EfficientNet-Lite0 (ResNet50 on a GPU), batches included, each side in a process of
its own
predict     answers of a ResNet50 from files on ONNX Runtime, against `learn.get_preds`, a loop of `learn.predict`,
and the runtime's own limit
            on pixels in memory; and what the first answer of a fresh process costs
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision.models
from fastai.vision.all import ImageDataLoaders, Normalize, Resize, aug_transforms, vision_learner
from gpu import clocked_rate, our_learner, rate, sync

from oct_classify.core import CLASSES, quiet
from oct_classify.data.prepare import placed, prepare_many
from oct_classify.data.scans import scan_table
from oct_classify.inference.bundle import add_int8, save_bundle
from oct_classify.inference.model import OctModel
from oct_classify.inference.onnx import onnx_runtime
from oct_classify.inference.ood import fit_inputs, traits
from oct_classify.phantoms.phantom import phantom_folder
from oct_classify.training.network import FALLBACK, network
from oct_classify.training.pack import pack, packed_loaders
from oct_classify.training.recipes import Augment

CUDA = torch.cuda.is_available()


def scans(folder):
    "The readable scans of OCT_DATA, or 400 phantoms: table, and folder that its paths are relative to"
    root = Path(os.environ['OCT_DATA']) if os.environ.get('OCT_DATA') else phantom_folder(folder, 45, 0, 5, scans=2)
    t = scan_table(root)
    return t[t.error == ''].reset_index(drop=True), root


def in_turns(repeat, **sides):
    "Each side's rates over `repeat` rounds, after one that warms up"
    got = {name: [] for name in sides}
    for i in range(repeat+1):
        for name, measure in sides.items():
            r = measure()
            if i: got[name].append(r)
    return got


# Loaders

def fastai_loaders(table, root, size, batch_tfms, bs=64):
    "Plain fastai; one scan per class for its validation"
    df = pd.DataFrame(dict(name=table.path, label=table.label, is_valid=False))
    df.loc[df.groupby('label').head(1).index, 'is_valid'] = True
    return ImageDataLoaders.from_df(
        df,
        root,
        valid_col='is_valid',
        item_tfms=Resize(size),
        batch_tfms=batch_tfms,
        bs=bs,
        device='cuda' if CUDA else 'cpu',
    )


def epoch_rate(dl):
    begun, n = time.perf_counter(), 0
    for x, _ in dl: n += len(x)
    sync()
    return n/(time.perf_counter()-begun)


def loader_rates(table, root, repeat, augmented=False, many=2400):
    table = pd.concat([table] * -(-many // len(table)), ignore_index=True)[:many]
    ours = packed_loaders(
        pack(table.drop_duplicates('path'), root, None, 224),
        table,
        table[:1],
        bs=64,
        augment=Augment() if augmented else None,
    ).train
    theirs = fastai_loaders(table, root, 224, aug_transforms() if augmented else None).train
    return in_turns(repeat, ours=partial(epoch_rate, ours), fastai=partial(epoch_rate, theirs))


# Training

def plain_learner(table, root, size=224):
    "Plain fastai on the same architecture, all layers trained"
    dls = fastai_loaders(table, root, size, [*aug_transforms(), Normalize.from_stats([.5]*3, [.5]*3)])
    learn = vision_learner(dls, 'resnet50' if CUDA else FALLBACK, pretrained=False, normalize=False)
    learn.unfreeze()
    return learn.to_fp16() if CUDA else learn


def one_training(side, table, root, steps):
    "In a process of its own, as the recipe changes the allocator"
    if side == 'fastai':
        return clocked_rate(plain_learner(table, root), steps)
    return clocked_rate(
        our_learner(pack(table, root, None, 224), 'resnet50' if CUDA else FALLBACK)[0], 4 * steps
    )  # its batches are a quarter of fastai's


def train_rates(table, root, repeat, folder):
    file = Path(folder)/'table.parquet'
    table.to_parquet(file)

    def measure(side):
        cmd = [sys.executable, '-W', 'ignore', __file__, '--one', side, '--table', str(file), '--root', str(root)]
        return float(subprocess.run(cmd, check=True, capture_output=True, text=True).stdout)
    got = {side: [] for side in ('ours', 'fastai')}
    for _ in range(repeat):
        for side, rates in got.items(): rates.append(measure(side))
    return got


# Answers

def serving_bundle(folder, files, arch='resnet50', size=224):
    "A bundle with random weights and everything that costs time in use, in full precision and in eight bits"
    config = dict(arch=arch, classes=list(CLASSES), size=[size, size], view='crop', mirror=False)
    seen = [placed(f, size) for f in files[:64]]
    net, px = network(arch, size=size), np.stack([p for p, _ in seen])
    with torch.no_grad():
        f = net.eval().pool(net.body(net.pixels(torch.from_numpy(px)))).numpy()
    b = save_bundle(
        Path(folder) / 'bundle', net, config, inputs=fit_inputs(np.stack([traits(*o) for o in seen]), f), onnx=True
    )
    add_int8(b, px[:32])
    return b


def runtime_alone(file, px, bs=16):
    "ONNX Runtime as it comes, all cores on each batch, on pixels in memory"
    session = onnx_runtime().InferenceSession(str(file), providers=['CPUExecutionProvider'])

    def work():
        for i in range(0, len(px), bs): session.run(['logits'], dict(pixels=px[i:i+bs]))
    return work


def answer_rates(bundle, files, repeat, single=40):
    full, eight = [OctModel.load(bundle, engine='onnx', int8=i) for i in (False, True)]
    arch, size = full.config['arch'], full.config['size'][0]
    dls = ImageDataLoaders.from_lists(
        files[0].parent,
        files,
        [CLASSES[i % 4] for i in range(len(files))],
        valid_pct=0.5,
        item_tfms=Resize(size),
        bs=64,
    )
    learn = vision_learner(dls, getattr(torchvision.models, arch), pretrained=False, normalize=False)
    px, n = prepare_many(files, size)[0], len(files)

    def get_preds():
        with learn.no_bar():
            learn.get_preds(dl=learn.dls.test_dl(files))

    def loop():
        with learn.no_bar():
            for f in files[:single]:
                learn.predict(f)

    work = dict(
        ours=partial(full.predict, files),
        limit=runtime_alone(bundle / 'model.onnx', px),
        ours_int8=partial(eight.predict, files),
        limit_int8=runtime_alone(bundle / 'model.int8.onnx', px),
        get_preds=get_preds,
        loop=loop,
    )
    return in_turns(repeat, **{k: partial(rate, f, single if k == 'loop' else n) for k, f in work.items()})


FIRST = '''
import json, sys
from pathlib import Path
from oct_classify.inference.model import OctModel
OctModel.load(sys.argv[1], engine='onnx').predict([sys.argv[2]])
status = Path('/proc/self/status')
lines = status.read_text().splitlines() if status.exists() else []
peak = [int(o.split()[1])*1024 for o in lines if o.startswith('VmHWM')] or [None]
heavy = sorted({'torch', 'fastai', 'timm', 'sklearn', 'matplotlib'} & set(sys.modules))
print(json.dumps(dict(bytes=peak[0], heavy=heavy)))
'''


def first_answer(bundle, file, repeat):
    "A fresh process that answers once: median seconds and megabytes, and heavy modules that it loaded"
    runs = []
    for _ in range(repeat):
        begun = time.perf_counter()
        said = subprocess.run(
            [sys.executable, '-c', FIRST, str(bundle), str(file)], check=True, capture_output=True, text=True
        ).stdout
        runs.append(json.loads(said) | dict(seconds=time.perf_counter() - begun))
    mb = statistics.median(o['bytes'] for o in runs) / 1e6 if runs[0]['bytes'] else None
    return dict(
        first_answer_seconds=statistics.median(o['seconds'] for o in runs),
        first_answer_mb=mb,
        first_answer_loads=runs[0]['heavy'],
    )


# The table

RATIOS = dict(
    loader_vs_fastai=('loader', 'ours', 'fastai'),
    augmented_loader_vs_fastai=('augmented', 'ours', 'fastai'),
    train_vs_fastai=('train', 'ours', 'fastai'),
    packing_vs_fastai_epoch=('packing', 'ours', 'fastai'),
    predict_vs_get_preds=('predict', 'ours', 'get_preds'),
    predict_vs_loop=('predict', 'ours', 'loop'),
    predict_vs_ort_limit=('predict', 'ours', 'limit'),
    int8_vs_fp32=('predict', 'ours_int8', 'ours'),
    int8_vs_get_preds=('predict', 'ours_int8', 'get_preds'),
)


def ratios(rates):
    "Medians of the ratios of paired runs"
    return {
        k: statistics.median(a / b for a, b in zip(rates[of][x], rates[of][y]))
        for k, (of, x, y) in RATIOS.items()
        if of in rates
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default='loader,augmented,train,predict')
    p.add_argument('--repeat', type=int, default=5)
    p.add_argument('--json')
    for hidden in ('--one', '--table', '--root'):
        p.add_argument(hidden, help=argparse.SUPPRESS)
    a = p.parse_args()
    quiet()
    if a.one:
        return print(one_training(a.one, pd.read_parquet(a.table), a.root, 3))
    only, rates, first = a.only.split(','), {}, {}
    with tempfile.TemporaryDirectory() as d:
        table, root = scans(Path(d) / 'scans')
        if 'loader' in only:
            rates['loader'] = loader_rates(table, root, a.repeat)
            rates['packing'] = dict(
                ours=[rate(lambda: pack(table, root, None), len(table)) for _ in range(a.repeat)],
                fastai=rates['loader']['fastai'],
            )
        if 'augmented' in only:
            rates['augmented'] = loader_rates(table, root, a.repeat, True)
        if 'train' in only:
            rates['train'] = train_rates(table, root, a.repeat, d)
        if 'predict' in only:
            files = [Path(root) / p for p in table.path.sample(frac=1, random_state=0)[:128]]
            b = serving_bundle(d, files)
            rates['predict'], first = answer_rates(b, files, a.repeat), first_answer(b, files[0], a.repeat)
    gpu = torch.cuda.get_device_name() if CUDA else 'no GPU'
    medians = {k: {side: round(statistics.median(v), 1) for side, v in r.items()} for k, r in rates.items()}
    out = dict(
        ratios=ratios(rates),
        scans_per_second=medians,
        **first,
        runs=rates,
        repeat=a.repeat,
        scans=len(table),
        data='OCT_DATA' if os.environ.get('OCT_DATA') else 'phantoms',
        hardware=f'{os.cpu_count()} CPU cores ({platform.machine()}), {gpu}',
        torch=torch.__version__,
        date=datetime.date.today().isoformat(),
    )
    print(json.dumps({k: v for k, v in out.items() if k != 'runs'}, indent=1))
    if a.json:
        Path(a.json).write_text(json.dumps(out, indent=1) + '\n')


if __name__ == '__main__': main()
