"""Everything a GPU owner wants to know, in one command: training, plain fastai, real runs, kill and resume, fp16,
prediction, memory, CPU against GPU.

    python bench/gpu.py [--json gpu.json] [--only train,predict] [--minutes 8] [--tiny]

Each step runs in a process of its own under a time limit, and is written to the JSON file, and as a Markdown table
beside it, as soon as it is known:
a run that is cut off still leaves figures. Real scans are found through OCT_DATA (a folder in Kaggle's layout);
without it phantoms are drawn. Eight
minutes on an H100 or H200, twenty on Colab's T4. `--tiny` takes a small network and small scans, to try the script
itself on a CPU.

Rates are medians of paired runs, in turns, after a warm-up. What a step costs does not depend on what is on the
scans, so `train` takes random pixels
in a memory-mapped pack of 83,484 scans and random weights.
"""
import argparse
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

HERE = Path(__file__).resolve()
TINY = dict(arch='resnet18', size=64, scans=2000, bs=16, steps=2, repeat=1, recipe_bs=8, epochs=2, files=40)
FULL = dict(arch='resnet50', size=224, scans=83_484, bs=256, steps=50, repeat=3, recipe_bs=64, epochs=30, files=1000)
TOLERANCE = .05 # how far a probability may differ: bf16 keeps eight bits of each number


def device():
    from oct_classify.training.learner import this_device
    return this_device()


def sync():
    if torch.cuda.is_available(): torch.cuda.synchronize()


def peak_gb(): return round(torch.cuda.max_memory_allocated()/1e9, 2) if torch.cuda.is_available() else None


def real_scans(folder):
    "The folder of OCT_DATA, or of phantoms"
    if os.environ.get('OCT_DATA'): return Path(os.environ['OCT_DATA'])
    from oct_classify.phantoms.phantom import phantom_folder
    return phantom_folder(Path(folder)/'phantoms', 12, 2, 5)


# Training speed

def synthetic_pack(folder, n, size):
    "A pack of `n` scans of random pixels, without files"
    from oct_classify.core import CLASSES
    from oct_classify.training.pack import Packed
    file = Path(folder)/f'{n}x{size}.raw'
    if not file.exists():
        block = np.random.default_rng(0).integers(0, 255, (1000, size, size), dtype=np.uint8)
        with open(file, 'wb') as f:
            for i in range(0, n, 1000): f.write(block[:n-i])
    ids = [str(i) for i in range(n)]
    table = pd.DataFrame(dict(path=ids, sha256=ids, label=[CLASSES[i % 4] for i in range(n)], error=''))
    pixels = np.memmap(file, np.uint8, 'r', shape=(n, size, size))
    return Packed(table, pixels, (size, size), 'whole', file=open(file, 'rb', buffering=0))


class FixedBatch:
    "A loader that hands out one batch of device memory again and again"

    def __init__(self, dl):
        self.batch, self.n, self.dataset, self.device = dl.one_batch(), len(dl), dl.dataset, dl.device

    def __len__(self):
        return self.n

    def __iter__(self):
        return (self.batch for _ in range(self.n))


def clocked_rate(learn, steps):
    "Scans per second of `steps` training steps after five that warm up, loading included"
    from fastai.vision.all import Callback, CancelFitException

    class Clock(Callback):
        order = 90
        def before_fit(self): self.done = self.scans = 0
        def after_batch(self):
            if not self.training: return
            self.done += 1
            if self.done > 5: self.scans += len(self.y)
            if self.done in (5, steps+5): sync()
            if self.done == 5: self.begun = time.perf_counter()
            if self.done < steps+5: return
            self.seconds = time.perf_counter()-self.begun
            raise CancelFitException
    clock = Clock()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(100, 1e-4, cbs=clock)
    return clock.scans/clock.seconds


def our_learner(packed, arch, fixed=False, **options):
    from oct_classify.training.network import network
    from oct_classify.training.pack import packed_loaders
    from oct_classify.training.callbacks import callbacks
    from oct_classify.training.learner import filled, keep_memory, oct_learner, to_device_fast
    from oct_classify.training.recipes import Options
    keep_memory()
    dev = device()
    net = to_device_fast(network(arch, size=packed.size), dev)
    recipe = filled(Options(**options), dev, net)
    if recipe.compile: net.body.compile()
    dls = packed_loaders(packed, packed.table, packed.table[:8], bs=recipe.bs, augment=recipe.augment, device=dev)
    learn = oct_learner(dls, net, recipe)
    learn.add_cbs(callbacks(recipe, net, dls))
    learn.unfreeze()
    if fixed: learn.dls.loaders[0] = FixedBatch(dls.train)
    return learn, recipe


def speed(c, folder, **options):
    "End to end against the fixed batch, in turns"
    packed, got = synthetic_pack(folder.parent, c['scans'], c['size']), []
    for _ in range(c['repeat']):
        got.append(
            [clocked_rate(our_learner(packed, c['arch'], fixed, **options)[0], c['steps']) for fixed in (False, True)]
        )
    precision = our_learner(packed, c['arch'], **options)[1].precision
    ours, fixed = [statistics.median(o) for o in zip(*got)]
    return (
        dict(arch=c['arch'], size=c['size'])
        | options
        | dict(
            precision=precision,
            scans_per_second=round(ours),
            fixed_batch=round(fixed),
            ratio=round(statistics.median(a / b for a, b in got), 3),
            seconds_per_epoch=round(83_484 / ours, 1),
            peak_gb=peak_gb(),
            runs=[[round(o) for o in r] for r in got],
        )
    )


def train(c, folder): return speed(c, folder, bs=c['bs'])
def train_recipe_bs(c, folder): return speed(c, folder, bs=c['recipe_bs'])
def train_compiled(c, folder): return speed(c | dict(repeat=1), folder, bs=c['bs'], compile=True)
def train_fp16(c, folder):
    return (
        dict(skipped='no GPU')
        if device().type == 'cpu'
        else speed(c | dict(repeat=1), folder, bs=c['bs'], precision='fp16')
    )
def train_fp32(c, folder): return speed(c | dict(repeat=1, steps=c['steps']//2), folder, bs=c['bs'], precision='fp32')


# Plain fastai

def fastai(c, folder):
    "`ImageDataLoaders`, `aug_transforms`, `to_fp16`, all workers, from JPEG; ours on the same scans, packed"
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, vision_learner
    import torchvision.models as tv
    from oct_classify.data.scans import scan_table
    from oct_classify.training.pack import pack

    root = real_scans(folder)
    table = scan_table(root)
    table = table[table.error == ''].reset_index(drop=True)
    steps, bs = c['steps'], c['recipe_bs']
    many = pd.concat([table] * -(-(steps + 6) * bs * 2 // len(table)), ignore_index=True)
    df = pd.DataFrame(dict(name=many.path, label=many.label, is_valid=False))
    df.loc[df.groupby('label').head(1).index, 'is_valid'] = True

    def plain():
        dls = ImageDataLoaders.from_df(
            df,
            root,
            valid_col='is_valid',
            item_tfms=Resize(c['size']),
            batch_tfms=aug_transforms(),
            bs=bs,
            num_workers=os.cpu_count(),
            device=device(),
        )
        learn = vision_learner(dls, getattr(tv, c['arch']), pretrained=False, normalize=False)
        learn.unfreeze()
        return learn.to_fp16() if device().type == 'cuda' else learn

    t = time.perf_counter()
    packed = pack(table, root, None, c['size'])
    packing = len(table) / (time.perf_counter() - t)
    packed.table = many.assign(error='')
    packed.pixels = np.tile(packed.pixels, (len(many) // len(table), 1, 1))
    got = [
        (clocked_rate(our_learner(packed, c['arch'], bs=bs)[0], steps), clocked_rate(plain(), steps))
        for _ in range(c['repeat'])
    ]
    ours, theirs = [statistics.median(o) for o in zip(*got)]
    return dict(
        arch=c['arch'],
        size=c['size'],
        bs=bs,
        workers=os.cpu_count(),
        ours=round(ours),
        plain_fastai=round(theirs),
        ratio=round(statistics.median(a / b for a, b in got), 2),
        plain_seconds_per_epoch=round(83_484 / theirs, 1),
        packing_scans_per_second=round(packing),
        peak_gb=peak_gb(),
        runs=[[round(o) for o in r] for r in got],
    )


# The command, as people type it

def command(*args, **kw):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'oct_classify.cli', *map(str, args)],
        text=True,
        capture_output=True,
        **kw,
    )


def from_scratch(c, epochs):
    "Options of a network that starts at random"
    return ['--arch', c['arch'], '--size', c['size'], '--weights', 'none', '--epochs', epochs]


def resnet_options(c):
    "ImageNet weights where a hub can be reached, else a random start and more epochs"
    from oct_classify.training.network import hub_answers
    if c['arch'] == 'resnet50' and hub_answers('resnet50'): return ['--arch', 'resnet50']
    return from_scratch(c, c['epochs'])


def run_command(c, folder, options):
    data, out = real_scans(folder), Path(folder) / 'out'
    t = time.time()
    p = command('run', data, '--out', out, *options)
    seconds = time.time() - t
    if p.returncode:
        raise RuntimeError(p.stderr[-2000:])
    m = json.loads((out / 'metrics.json').read_text())
    config = json.loads((out / 'bundle/config.json').read_text())
    return dict(
        options=' '.join(map(str, options)),
        seconds=round(seconds, 1),
        accuracy=round(m['test']['accuracy']['value'], 4),
        interval=[round(m['test']['accuracy'][k], 4) for k in ('low', 'high')],
        stages=m['seconds'],
        epochs=config['epochs'],
        precision=config['options']['precision'],
        scans=m['scans'],
        data='OCT_DATA' if os.environ.get('OCT_DATA') else 'phantoms',
    )


def run_fast(c, folder):
    return run_command(c, folder, ['--recipe', 'fast', *(['--size', '64x96', '--epochs', 1] if c is TINY else [])])
def run_fast_bs16(c, folder):
    return run_command(
        c, folder, ['--recipe', 'fast', '--bs', 16, *(['--size', '64x96', '--epochs', 1] if c is TINY else [])]
    )
def run_resnet(c, folder): return run_command(c, folder, resnet_options(c))


def killed(c, folder):
    "kill -9 in mid-training, then the same command again"
    data, out = real_scans(folder), Path(folder) / 'out'
    options = ['train', data, '--out', out, *from_scratch(c, c['epochs'])]
    p = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-m', 'oct_classify.cli', *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
    )
    while p.poll() is None and not list(out.glob('checkpoints/*/*-*.pt')):
        time.sleep(0.05)
    p.kill()
    p.wait()
    found = max((f.stem for f in out.glob('checkpoints/*/*-*.pt')), default='none')
    again = command(*options)
    went_on = re.findall(r'Resuming after.*?(?= \()', again.stderr)
    config = json.loads((out / 'bundle/config.json').read_text()) if again.returncode == 0 else {}
    epochs = [r['epoch'] for r in config.get('history', [])]
    return dict(
        killed_at_state=found,
        second_run=went_on or again.stderr[-500:],
        exit_code=again.returncode,
        epochs_in_history=len(epochs),
        of=c['epochs'],
        passed=again.returncode == 0 and bool(went_on) and epochs == list(range(1, c['epochs'] + 1)),
    )


def fp16_command(c, folder):
    "A real run with a gradient scaler"
    precision = 'fp16' if torch.cuda.is_available() else 'bf16'
    return run_command(c, folder, [*from_scratch(c, max(2, c['epochs'] // 4)), '--precision', precision])


# Prediction

def a_bundle(c, folder, data):
    "A trained bundle that saw `data`: prediction and CPU against GPU are about a network with an opinion"
    out = Path(folder) / 'made'
    p = command('train', data, '--out', out, *from_scratch(c, max(2, c['epochs'] // 7)))
    if p.returncode:
        raise RuntimeError(p.stderr[-2000:])
    return out / 'bundle'


def predict(c, folder):
    "From files on the GPU, against pixels in memory; then the same bundle on the CPU: do the figures agree?"
    from oct_classify.inference.model import OctModel
    from oct_classify.data.prepare import prepare_many

    data = real_scans(folder)
    b = a_bundle(c, folder, data)
    files = sorted(data.glob('test/*/*')) or sorted(data.rglob('*.jp*g'))
    many = (files * -(-c['files'] // len(files)))[: c['files']]
    gpu = OctModel.load(b, engine='torch')
    gpu.predict(files[:8])
    rates = [rate(lambda: gpu.predict(many), len(many)) for _ in range(c['repeat'])]
    size = tuple(gpu.config['size'])
    t = time.perf_counter()
    pixels, _ = prepare_many(files, size, gpu.config['view'])
    reading = len(files) / (time.perf_counter() - t)
    block = np.concatenate([pixels] * -(-2048 // len(pixels)))[: 2048 if c is FULL else 64]
    memory = [rate(lambda: gpu.logits(block, bs=256), len(block)) for _ in range(c['repeat'])]
    out = dict(
        device=str(gpu.device),
        precision=str(gpu.run.dtype or 'fp32'),
        from_files=round(statistics.median(rates)),
        in_memory=round(statistics.median(memory)),
        read_and_prepare=round(reading),
        files=len(many),
        size=list(size),
        views=2 if gpu.config['mirror'] else 1,
    )
    return out | agreement(gpu, b, pixels)


def rate(work, n):
    t = time.perf_counter()
    work()
    sync()
    return n/(time.perf_counter()-t)


def agreement(gpu, bundle, pixels):
    "GPU in the precision of training, CPU in full precision by both engines: passed within `TOLERANCE`"
    from oct_classify.inference.model import OctModel

    p, out = gpu.probs(pixels), dict(passed=True)
    for name, kw in dict(cpu=dict(engine='torch', device='cpu'), onnx=dict(engine='onnx')).items():
        try:
            q = OctModel.load(bundle, **kw).probs(pixels)
        except Exception as e:
            out |= {f'{name}_error': str(e), 'passed': False}
            continue
        same = p.argmax(1) == q.argmax(1)
        worst = float(abs(p - q).max())
        out['passed'] = out['passed'] and worst <= TOLERANCE
        out |= {
            f'{name}_largest_difference_of_p': round(worst, 5),
            f'{name}_mean_difference_of_p': round(float(abs(p - q).mean()), 6),
            f'{name}_same_answer': f'{int(same.sum())} of {len(same)}',
        }
    return out


# Out of memory

def memory(c, folder):
    """A step that does not fit: is the batch size that the error names one that fits? Held to 8 GB, so that every card
    is asked the same"""
    from oct_classify.core import OctError
    from oct_classify.training.learner import fine_tune, memory_advice

    if not torch.cuda.is_available():
        return dict(skipped='no GPU')
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 8e9 / total))
    packed, tried, bs = synthetic_pack(folder.parent, c['scans'], c['size']), [], 1024
    while len(tried) < 3 and bs > 1:
        learn, recipe = our_learner(packed, c['arch'], bs=bs, epochs=1)
        try:
            with memory_advice(learn, recipe.precision):
                fine_tune(learn, recipe)
            return dict(limit_gb=8, asked=1024, advice=tried, fits=bs, passed=len(tried) == 1, peak_gb=peak_gb())
        except OctError as e:
            tried.append(str(e))
            bs = int(re.search(r'--bs (\d+)', str(e))[1])
        del learn
        torch.cuda.empty_cache()
    return dict(limit_gb=8, asked=1024, advice=tried, passed=False)


# name: (function, limit in seconds, what it answers)
STEPS = dict(
    train=(train, 90, 'training end to end against one batch in device memory'),
    train_recipe_bs=(train_recipe_bs, 90, "the same at the recipe's batch size"),
    fastai=(fastai, 120, 'against plain fastai from JPEG'),
    memory=(memory, 60, 'out of memory: does the advice fit?'),
    run_fast=(run_fast, 120, 'oct-classify run --recipe fast'),
    run_fast_bs16=(run_fast_bs16, 120, 'the same in steps of 16 scans, as on a CPU'),
    run_resnet=(run_resnet, 180, 'oct-classify run, ResNet50'),
    predict=(predict, 120, 'prediction from files, and CPU against GPU'),
    killed=(killed, 120, 'kill -9 and resume'),
    fp16_command=(fp16_command, 90, 'run --precision fp16'),
    train_fp16=(train_fp16, 60, 'training in fp16'),
    train_fp32=(train_fp32, 60, 'training in fp32'),
    train_compiled=(train_compiled, 180, 'training with torch.compile'))


def machine():
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    import fastai, timm, oct_classify

    return dict(
        hardware=f'{os.cpu_count()} CPU cores, {gpu}',
        torch=torch.__version__,
        cuda=torch.version.cuda,
        fastai=fastai.__version__,
        timm=timm.__version__,
        oct_classify=oct_classify.__version__,
        date=datetime.date.today().isoformat(),
    )


def as_markdown(got):
    "One row per step; lists are left to the JSON file"

    def words(o):
        return ', '.join(
            f'{k} {str(v).strip().splitlines()[-1][-200:]}'
            for k, v in o.items()
            if v != '' and not isinstance(v, (list, dict))
        )

    head = '; '.join(f'{k} {v}' for k, v in got['machine'].items())
    rows = [f'| {k} | {STEPS[k][2]} | {words(v)} |' for k, v in got['steps'].items()]
    return '\n'.join([head, '', '| step | question | measured |', '|---|---|---|', *rows, ''])


def one_step(name, tiny, folder):
    "In its own process: one step, its result as JSON in `folder`"
    from oct_classify.core import quiet
    quiet()
    got = STEPS[name][0](TINY if tiny else FULL, folder)
    (folder/'step.json').write_text(json.dumps(got))


def in_process(name, tiny, work, left):
    "A step's result, or why there is none"
    limit, folder, t = min(STEPS[name][1], left), work / name, time.time()
    if left < 10:
        return dict(failed='no time was left')
    folder.mkdir()
    cmd = [sys.executable, '-W', 'ignore', HERE, '--step', name, '--work', folder, *['--tiny'] * tiny]
    p = subprocess.Popen(
        list(map(str, cmd)),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=HERE.parents[1],
        start_new_session=True,
    )
    try:
        said = p.communicate(timeout=limit)[1]
        got = json.loads((folder / 'step.json').read_text()) if p.returncode == 0 else dict(failed=said[-1500:])
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)  # what it started too
        p.wait()
        got = dict(failed=f'not done after {limit:.0f} seconds')
    shutil.rmtree(folder, ignore_errors=True)
    return got | dict(step_seconds=round(time.time() - t, 1))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--json', default='gpu.json')
    p.add_argument('--only', default=','.join(STEPS))
    p.add_argument('--minutes', type=float, default=60, help='for all steps together (%(default)s)')
    p.add_argument('--tiny', action='store_true')
    p.add_argument('--step', help=argparse.SUPPRESS)
    p.add_argument('--work', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.step: return one_step(a.step, a.tiny, a.work)
    got, end = dict(machine=machine(), steps={}), time.time()+60*a.minutes
    with tempfile.TemporaryDirectory() as d:
        for name in a.only.split(','):
            got['steps'][name] = in_process(name, a.tiny, Path(d), end-time.time())
            print(name, json.dumps(got['steps'][name]), flush=True)
            Path(a.json).write_text(json.dumps(got, indent=1)+'\n')
            Path(a.json).with_suffix('.md').write_text(as_markdown(got))
    print(as_markdown(got))


if __name__ == '__main__': main()
