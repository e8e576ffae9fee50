"""How well the retina is found: contact sheets to look at, failures on phantoms, speed, and the shortcuts that each
view leaves.

    python bench/retina.py DATA [--also DIR …] [--out DIR] [--size 256x384] [--phantoms 400] [--seed 11] [--only
        sheets,phantoms,speed,shortcuts]

DATA is a folder of scans in Kaggle's layout; the pictures under --also are drawn and counted too. The sheets, with
the curve that was found (green)
and the upper and lower edge of the crop (red) beside the flattened view, go to --out as pages of 50; they show
patients: keep them to yourself.
On phantoms a failure is a curve whose median distance to Bruch's membrane is over 5 % of the height, or a column
whose retina the crop cuts.
Shortcuts are balanced accuracies of a forest that sees no retina (see the notebook of `audit`), on the train and val
folders, patients held out.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.stats import binomtest

from oct_classify.data.audit import held_out, balanced_accuracy, examine, shortcuts
from oct_classify.core import *
from oct_classify.phantoms.phantom import Phantom
from oct_classify.data.prepare import *
from oct_classify.data.split import components

TILE = (96, 144)


def pictures(folder):
    return sorted(p for p in folder.rglob('*') if p.suffix.lower() in ('.jpeg', '.jpg', '.png'))


def lines(where, x):
    "Rows on the whole scan (3, n) of the RPE and of the window's edges, shares of the height, at x from -1 to 1"
    top = np.polyval(where.curve, x)
    return np.stack([where.retina.rows(len(x)), top, top+where.tall])


def tile(path):
    "One scan with its lines, and flattened beside it"
    h, w = TILE
    left, where = Image.fromarray(prepare(path, TILE, 'whole')).convert('RGB'), placed(path, TILE, 'crop')[1]
    d = ImageDraw.Draw(left)
    if where.retina:
        for y, c in zip(lines(where, np.linspace(-1, 1, w)), ('lime', 'red', 'red')):
            d.line([(i, o * h) for i, o in enumerate(y)], c)
    im = Image.new('RGB', (2 * w + 2, h + 11))
    for i, o in enumerate((left, Image.fromarray(prepare(path, TILE, 'flat')))):
        im.paste(o, (i * w, 0))
    ImageDraw.Draw(im).text((2, h - 1), f'{path.stem} {where.view}', 'yellow')
    return im, where.view == 'whole'


def sheets(paths, out, cols=5, rows=10):
    fell = []
    for k in range(0, len(paths), cols*rows):
        page = Image.new('RGB', (cols*(2*TILE[1]+2), rows*(TILE[0]+11)))
        for i, p in enumerate(paths[k:k+cols*rows]):
            im, whole = tile(p)
            page.paste(im, (i % cols*im.width, i//cols*im.height))
            if whole: fell.append(p.name)
        page.save(make_dir(out)/f'page{k//cols//rows:02d}.png')
    print(f'{len(paths)} scans drawn; seen whole because the retina was not found for sure: {len(fell)}', *fell)


def share(n, of):
    "A share in percent with its 95 % interval (Clopper and Pearson)"
    ci = binomtest(int(n), of).proportion_ci()
    return f'{n} of {of}, {100*n/of:.2f} % ({100*ci.low:.2f}–{100*ci.high:.2f})'


def phantom(i, seed):
    """Median distance to Bruch's membrane, shares of columns whose retina crop and flat cut, and whether the view fell
    back"""
    p = Phantom(seed, CLASSES[i % 4], patient=i)
    H, W = p.image.shape
    where = [placed(p.image, (256, 384), v)[1] for v in ('crop', 'flat')]
    top, left, h, w = where[0].frame
    b = (p.layers[:, left : left + w] - top) / h  # the trimmed frame is what was searched
    ilm, rpe = b[0].clip(0, 1), b[-2].clip(0, 1)  # what the frame itself cuts is not the view's fault
    found, slack = lines(where[0], (2 * np.arange(w) + 1) / w - 1)[0], 1 / h
    cut = [
        ((ilm < o[1] - slack) | (rpe > o[2] + slack)).mean()
        for o in (lines(q, (2 * np.arange(w) + 1) / w - 1) for q in where)
    ]
    return np.median(np.abs(found - b[-1])), *cut, where[0].view == 'whole'


def phantoms(n, seed):
    d = pd.DataFrame([phantom(i, seed) for i in range(n)], columns=['off', 'crop', 'flat', 'fell'])
    d['label'] = [CLASSES[i % 4] for i in range(n)]
    for name, g in [*d.groupby('label'), ('all', d)]:
        print(
            f'{name}: median distance {g.off.median():.2%}, over 5 % {share((g.off > 0.05).sum(), len(g))}; seen '
            f'whole {share(g.fell.sum(), len(g))}'
        )
        for v in ('crop', 'flat'):
            print(
                f'    {v} cuts retina: anywhere {share((g[v] > 0).sum(), len(g))}; in over 5 % of columns '
                f'{share((g[v] > 0.05).sum(), len(g))}'
            )


def speed(paths, size, rounds=3):
    for v in VIEWS:
        wall, cpu = [], []
        for _ in range(rounds):
            t, c = time.perf_counter(), time.process_time()
            prepare_many(paths, size, v)
            wall.append(time.perf_counter() - t), cpu.append(time.process_time() - c)
        print(
            f'{v}: {len(paths) / np.median(wall):.0f} scans per second on the clock (best '
            f'{len(paths) / min(wall):.0f}), {1e3 * np.median(cpu) / len(paths):.2f} ms of CPU time per scan'
        )


def position(table, data, size, view, seed=0):
    "Balanced accuracy of a forest that knows only where and how steep and bent the RPE lies in the prepared pixels"
    def curve(path):
        where = placed(data/path, size, view)[1]
        return (np.array((where.retina or placed(data/path, size, 'crop')[1].retina).curve)-where.curve)/where.tall
    y, g = table.label.to_numpy(), components(table)
    x = np.round(np.stack([curve(p) for p in table.path]), 6)
    return balanced_accuracy(y, held_out(x, y, g, seed), g)


def tells(data, out, size):
    t, _ = examine(data, make_dir(out))
    t = t[t.folder.isin(['train', 'val']) & (t.error == '')].reset_index(drop=True)
    got = {v: shortcuts(t, data, size, v).set_index(['stage', 'statistics']) for v in VIEWS}
    rows = {'as shipped': got['whole'].loc['as shipped'], **{v: o.loc['prepared'] for v, o in got.items()}}
    print(len(t), 'scans; balanced accuracy in %, chance is 25')

    def text(value, low, high):
        return f'{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})'

    print(
        pd.DataFrame(
            {k: [text(r.value, r.low, r.high) for r in o.itertuples()] for k, o in rows.items()}, rows['whole'].index
        ).to_string()
    )
    print('position of the RPE', {v: text(*position(t, data, size, v)) for v in VIEWS})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('--also', type=Path, nargs='*', default=[])
    p.add_argument('--out', type=Path, default=Path('oct-out/retina'))
    p.add_argument('--size', type=as_size, default='256x384')
    p.add_argument('--phantoms', type=int, default=400)
    p.add_argument('--seed', type=int, default=11)
    p.add_argument('--only', default='sheets,phantoms,speed,shortcuts')
    a = p.parse_args()
    quiet()
    only, own = a.only.split(','), pictures(a.data)
    if 'sheets' in only: sheets([*own, *(o for d in a.also for o in pictures(d))], a.out)
    if 'phantoms' in only: phantoms(a.phantoms, a.seed)
    if 'speed' in only: speed(own, a.size)
    if 'shortcuts' in only: tells(a.data, a.out, a.size)


if __name__ == '__main__': main()
