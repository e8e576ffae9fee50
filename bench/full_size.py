"""A folder as large as Kaggle's through every command: how long does each take, and how much memory and disk?

    python bench/full_size.py [--scans 84484] [--out full-size]

Draws phantoms of 248x256 in Kaggle's mix of folders and classes, about 16 of each patient, and packs them into a zip
archive. Then `oct-classify download --zip`, `audit`, `run --freeze --recipe fast` and `predict` each run in a process
of their own. If you stop it, run the same command again: stages that are done are not repeated, the others go on where
they were, and their seconds add up. Writes full_size.json and full_size.md to the output folder, and what each stage
said to logs. Seconds are of the whole process, memory is the peak of the process with its children. The bound of a
stage is the part of its work that nothing can spare, done by itself on all cores: unpacking, decoding, the passes
through the network.

Drawing takes 4 to 10 ms per scan and core, that is 3 to 7 minutes for 84,484 scans on two cores. For those, the folder
needs 8 GB. Linux.
"""
import argparse
import importlib.metadata
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import timeit
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from oct_classify.core import atomic_write, cores, say

KAGGLE = dict(
    train=dict(CNV=37_205, DME=11_348, DRUSEN=8_616, NORMAL=26_315),
    val=dict.fromkeys(('CNV', 'DME', 'DRUSEN', 'NORMAL'), 8),
    test=dict.fromkeys(('CNV', 'DME', 'DRUSEN', 'NORMAL'), 242),
)
SCANS, PATIENTS = 84_484, 5_400
COLUMNS = ('stage', 'minutes', 'scans per second', 'peak memory, GB', 'output, MB', 'bound', 'its share, %')


def scans(n):
    "(folder, class, patient, number) of `n` scans, a few more where a folder of a class would hold fewer than four"
    first = 1000
    for folder, classes in KAGGLE.items():
        for label, count in classes.items():
            k = max(4, round(count * n / SCANS))
            patients = min(k, max(4, round(k * PATIENTS / SCANS)))
            for i in range(k): yield folder, label, first + i % patients, i // patients + 1
            first += patients


def draw_scan(folder, scan):
    from oct_classify.phantoms.phantom import Phantom

    top, label, patient, number = scan
    file = folder / top / label / f'{label}-{patient}-{number}.jpeg'
    if file.exists(): return
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(Phantom(42, label, patient=patient, number=number, shape=(248, 256)).image)
    part = file.with_suffix('.part') # atomic_write looks through the folder before each file
    picture.save(part, 'jpeg', quality=75)
    part.replace(file)


def draw(folder, n):
    todo = list(scans(n))
    with ProcessPoolExecutor(cores()) as ex:
        for i, _ in enumerate(ex.map(draw_scan, [folder] * len(todo), todo, chunksize=64), 1):
            if i % 5000 == 0: print(f'{i:,} of {len(todo):,}', flush=True)


def pack(folder, archive):
    with atomic_write(archive, 'wb') as f, zipfile.ZipFile(f, 'w') as z:
        for file in sorted(folder.rglob('*.jpeg')): z.write(file, Path('OCT2017') / file.relative_to(folder))
    shutil.rmtree(folder)


def stages(out, n):
    "(name, command, output) of every stage"
    cli = [sys.executable, '-m', 'oct_classify.cli']
    job = [sys.executable, __file__, '--out', out, '--scans', n, '--job']
    data = out / 'data'
    return [
        ('draw', [*job, 'draw'], out / 'drawn'),
        ('pack', [*job, 'pack'], out / 'scans.zip'),
        ('download', [*cli, 'download', data, '--zip', out / 'scans.zip'], data),
        ('audit', [*cli, 'audit', data, '--out', out / 'audit'], out / 'audit'),
        ('run', [*cli, 'run', data, '--freeze', '--recipe', 'fast', '--out', out / 'run'], out / 'run'),
        (
            'predict',
            [*cli, 'predict', out / 'run/bundle', data, '--out', out / 'predicted.parquet'],
            out / 'predicted.parquet',
        ),
    ]


def memory(pid):
    "Bytes that a process and its children hold, shared pages divided among those who share them"
    try:
        text = Path(f'/proc/{pid}/smaps_rollup').read_text()
        children = [c for t in Path(f'/proc/{pid}/task').iterdir() for c in (t / 'children').read_text().split()]
    except OSError: return 0 # it has ended meanwhile
    return 1024 * int(re.search(r'^Pss:\s+(\d+)', text, re.MULTILINE)[1]) + sum(map(memory, children))


def size(path):
    files = [path] if path.is_file() else [f for f in path.rglob('*') if f.is_file()]
    return sum(f.stat().st_size for f in files)


def go(command, log, row, save):
    "Run a stage, noting seconds and memory while it runs; its exit code"
    before, t0 = row['seconds'], time.time()
    with open(log, 'ab') as f:
        p = subprocess.Popen(list(map(str, command)), stdout=f, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while p.returncode is None:
                row['peak_gb'] = round(max(row['peak_gb'], memory(p.pid) / 1e9), 3)
                try: p.wait(.3)
                except subprocess.TimeoutExpired: pass
                row['seconds'] = round(before + time.time() - t0, 1)
                save()
        finally:
            if p.returncode is None: # this process is being stopped: so is the stage
                os.killpg(p.pid, signal.SIGINT)
                p.wait()
    return p.returncode


def decode(file):
    from oct_classify.core import read_grey
    return read_grey(file).shape


def passes(out, sample):
    "Scans per second through the network alone, pixels in memory: features by PyTorch, answers by ONNX Runtime"
    import torch
    from speed import runtime_alone
    from oct_classify.data.prepare import prepare_many
    from oct_classify.inference.model import OctModel
    from oct_classify.training.learner import keep_memory, to_device_fast
    keep_memory()
    model = OctModel.load(out / 'run/bundle', engine='torch')
    net = to_device_fast(model.net, model.device)
    px = prepare_many(sample[:256], *model.looks)[0]

    def features():
        with torch.inference_mode():
            for i in range(0, len(px), 16): net[:3](torch.from_numpy(px[i:i+16]))

    work = features, runtime_alone(out / 'run/bundle/model.onnx', px)
    looking, answering = [len(px) / min(timeit.repeat(f, number=1, repeat=4)) for f in work]
    return looking, answering / (1 + model.config['mirror']) # an answer is the mean of scan and mirror image


def bounds(out, n):
    "{stage: (what bounds it, seconds)}"
    sample = random.Random(0).sample(sorted((out / 'data').rglob('*.jpeg')), min(n, 4000))
    with ProcessPoolExecutor(cores()) as ex:
        list(ex.map(decode, sample[:200], chunksize=50))
        t = time.time()
        list(ex.map(decode, sample, chunksize=50))
        decoding = (time.time() - t) * n / len(sample)
    with tempfile.TemporaryDirectory(dir=out) as d, zipfile.ZipFile(out / 'scans.zip') as z:
        t = time.time()
        z.extractall(d)
        unpacking = time.time() - t
    looking, answering = passes(out, sample)
    m = json.loads((out / 'run/metrics.json').read_text())
    asked = m['scans']['valid'] + m['scans']['test']
    head = (2 * min(m['scans']['train'], 20_000) + m['scans']['valid']) / looking
    return dict(
        download=('unpacking', unpacking),
        audit=('decoding', decoding),
        run=('passes through the network', head + asked / answering),
        predict=('passes through the network', n / answering),
    )


def table(report):
    "The report as a table in Markdown"
    def row(stage, r):
        what, seconds = report.get('bounds', {}).get(stage, ('', None))
        share = f'{100*seconds/r["seconds"]:.0f}' if seconds else ''
        return (
            f"| {stage} | {r['seconds']/60:.1f} | {report['scans']/max(r['seconds'], .1):,.0f} | {r['peak_gb']:.2f} "
            f"| {r['output_mb']:,.1f} | {what} | {share} |"
        )

    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|---' * len(COLUMNS) + '|']
    lines += [row(k, r) for k, r in report['stages'].items() if r['done']]
    head = '{scans:,} scans, {cores} cores, version {version}, {date}'.format(**report)
    return '\n'.join([head, '', *lines, ''])


def opened(file, n):
    "The report so far"
    new = dict(
        asked=n,
        scans=sum(1 for _ in scans(n)),
        cores=cores(),
        version=importlib.metadata.version('oct_classify'),
        date=time.strftime('%Y-%m-%d'),
        stages={},
    )
    report = json.loads(file.read_text()) if file.exists() else new
    if report['asked'] != n:
        sys.exit(f"{file.parent} holds a run with --scans {report['asked']}: choose another --out.")
    return report


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--scans', type=int, default=SCANS)
    p.add_argument('--out', type=Path, default=Path('full-size'))
    p.add_argument('--job', choices=('draw', 'pack'), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.job == 'draw': return draw(a.out / 'drawn', a.scans)
    if a.job == 'pack': return pack(a.out / 'drawn', a.out / 'scans.zip')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (a.out / 'logs').mkdir(parents=True, exist_ok=True)
    report = opened(a.out / 'full_size.json', a.scans)

    def save():
        with atomic_write(a.out / 'full_size.json') as f: json.dump(report, f, indent=1)

    for name, command, output in stages(a.out, a.scans):
        row = report['stages'].setdefault(name, dict(seconds=0, peak_gb=0, output_mb=0, done=False))
        if row['done']: continue
        say(f'{name} …')
        code, log = go(command, a.out / f'logs/{name}.log', row, save), a.out / f'logs/{name}.log'
        if code: sys.exit(f'{name} ended with {code}: see {log}')
        row.update(done=True, output_mb=round(size(output) / 1e6, 1))
        save()
        (a.out / 'full_size.md').write_text(table(report))
    if 'bounds' not in report:
        report['bounds'] = bounds(a.out, report['scans'])
        save()
    (a.out / 'full_size.md').write_text(table(report))
    print(table(report))


if __name__ == '__main__': main()
