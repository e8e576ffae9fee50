"""Does a model refuse what is no scan, and answer what is one?

    python bench/nonscans.py BUNDLE DATA [--external DIR] [--n 500] [--seed 2026] [--refit] [--json FILE] [--sheet FILE]

Shows a bundle 500 pictures that are no upright B-scans, of 11 kinds, and the scans in DATA/test, and prints how many
of each it refuses: by traits of the picture alone, and
by traits and the network's features. Where the bundle carries no inputs.safetensors, or with --refit, what scans look
like is fitted on DATA's train and val folders first.
Turned, cut and negative scans are made of those in DATA/test, photos and pages come from what the wheels of
scikit-image and scikit-learn carry. Intervals are Wilson's, 95 %.

None of these pictures took part in choosing what is measured. That was done with scans of train and val, and for
non-scans with `made_nonscans` of the module `ood`
(empty frames, noise, gradients, words in Pillow's own font, drawn fundi, random textures), crops of seven other
pictures of scikit-image (`DEVELOPMENT`, kept out here),
and scans of train and val turned over or on their side. Turned scans are thus the one kind that both have, of other
patients.
"""
import argparse, json, time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage
from scipy.stats import binomtest

from oct_classify.core import *
from oct_classify.inference.ood import *
from oct_classify.data.prepare import find_retina, placed

DEVELOPMENT = ('astronaut', 'brick', 'camera', 'cell', 'chelsea', 'coffee', 'chessboard_RGB')
PHOTOS = (
    'coins.png',
    'color.png',
    'grass.png',
    'gravel.png',
    'horse.png',
    'hubble_deep_field.jpg',
    'ihc.png',
    'motorcycle_left.png',
    'moon.png',
    'rocket.jpg',
    'clock_motion.png',
    'phantom.png',
)
SHARE = dict(
    photo=90,
    fundus=60,
    text=60,
    noise=80,
    gradient=30,
    blank=20,
    chart=40,
    upside_down=50,
    turned=30,
    vitreous=20,
    negative=20,
)


def shipped(*names):
    """Paths of pictures that come inside the wheel of scikit-image, and all of scikit-learn's; those that are not
    there are left out"""
    out = []
    for module, sub, wanted in (
        ('skimage', 'data', names),
        ('sklearn', 'datasets/images', ('china.jpg', 'flower.jpg') if 'coins.png' in names else ()),
    ):
        try:
            root = Path(__import__(module).__file__).parent / sub
        except ImportError:
            continue
        out += [root / n for n in wanted if (root / n).is_file()]
    return out


def cut(path, rng, least=.35):
    "A piece of a picture, maybe mirrored, at the size of a scan"
    a = read_grey(path)
    h, w = [max(40, int(n*rng.uniform(least, 1))) for n in a.shape]
    y, x = [int(rng.integers(0, max(1, n-m+1))) for n, m in zip(a.shape, (h, w))]
    im = Image.fromarray(np.ascontiguousarray(a[y:y+h, x:x+w][:, ::rng.choice([-1, 1])]))
    return np.asarray(im.resize((int(rng.integers(384, 769)), int(rng.integers(256, 497)))))


def frame(rng): return int(rng.integers(256, 500)), int(rng.integers(384, 770))


def grey(a):
    a = a-a.min()
    return (255*a/(a.max() or 1)).astype(np.uint8)


def photo(rng, scan): return cut(rng.choice(shipped(*PHOTOS)), rng)


def fundus(rng, scan):
    "A colour photograph, one of its channels, or a piece with microaneurysms"
    path = rng.choice(shipped('retina.jpg', 'retina.jpg', 'microaneurysms.png'))
    im = Image.open(path)
    k = rng.integers(4)
    if im.mode == 'RGB' and k < 3: im = im.getchannel(int(k))
    return cut(im.convert('L'), rng, .6)


def text(rng, scan):
    "A printed page, or a table of figures in a serif font"
    pages = shipped('page.png', 'text.png')
    if pages and rng.random() < .5: return cut(rng.choice(pages), rng, .4)
    h, w = frame(rng)
    im, size, ink = Image.new('L', (w, h), 235), int(rng.integers(9, 22)), int(rng.integers(0, 60))
    d, font = ImageDraw.Draw(im), serif(size)
    for y in range(6, h, int(1.5*size)):
        for x in range(10, w, 6*size): d.text((x, y), f'{rng.normal(100, 60):.1f}', ink, font)
        if rng.random() < .2: d.line([(8, y-2), (w-8, y-2)], ink)
    return np.asarray(ImageOps.invert(im) if rng.random() < .4 else im)


def serif(size):
    try: import matplotlib
    except ImportError: return ImageFont.load_default(size)
    return ImageFont.truetype(f'{matplotlib.get_data_path()}/fonts/ttf/DejaVuSerif.ttf', size)


def noise(rng, scan):
    """Value noise, counts, mosaics, stripes along rows or columns, a band of frequencies, the greys of a scan in
    random order"""
    h, w = frame(rng)
    k = rng.integers(7)
    if k == 0:
        a = ndimage.zoom(rng.random((int(rng.integers(3, 40)), int(rng.integers(3, 40)))), 20, order=1)
    elif k == 1:
        a = rng.poisson(rng.uniform(0.2, 20), (h, w)).astype(float)
    elif k == 2:
        xy, (yy, xx) = rng.random((40, 2)) * (h, w), np.mgrid[:h, :w]
        a = rng.random(40)[((yy[..., None] - xy[:, 0]) ** 2 + (xx[..., None] - xy[:, 1]) ** 2).argmin(-1)]
    elif k == 3:
        a = np.repeat(ndimage.gaussian_filter1d(rng.random(h), rng.uniform(0.1, 12))[:, None], w, 1) * (
            1 + 0.2 * rng.normal(size=(h, w))
        )
    elif k == 4:
        a = np.repeat(ndimage.gaussian_filter1d(rng.random(w), rng.uniform(0.1, 12))[None], h, 0) * (
            1 + 0.2 * rng.normal(size=(h, w))
        )
    elif k == 5:
        s, n = rng.uniform(1, 12), rng.normal(size=(h, w))
        a = ndimage.gaussian_filter(n, s) - ndimage.gaussian_filter(n, 2 * s)
    else:
        a = rng.permutation(scan().ravel()).reshape(scan().shape).astype(float)
    return grey(a)


def gradient(rng, scan):
    "Gratings, and four corners blended"
    h, w = frame(rng)
    y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)
    a = rng.uniform(0, np.pi)
    if rng.random() < 0.5:
        return grey(
            np.sin(rng.uniform(2, 60) * (x * np.cos(a) + y * np.sin(a))) + rng.uniform(0, 0.2) * rng.normal(size=(h, w))
        )
    return np.asarray(Image.fromarray(rng.integers(0, 256, (2, 2)).astype(np.uint8)).resize((w, h), Image.BILINEAR))


def blank(rng, scan):
    "Black, white, or either with a line of text in a corner, as an export that failed"
    h, w = frame(rng)
    im = Image.new('L', (w, h), int(rng.choice([0, 255])))
    if rng.random() < 0.5:
        ImageDraw.Draw(im).text(
            (10, h - 30), f'Patient {rng.integers(1e6)}  OD  {rng.integers(1990, 2030)}', 128, serif(14)
        )
    return np.asarray(im)


def chart(rng, scan):
    "Lines, bars, points or a histogram, with axes"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure((rng.uniform(4, 8), rng.uniform(3, 5)), dpi=90, facecolor='white')
    ax, k = fig.add_subplot(), rng.integers(4)
    if k == 0:
        [ax.plot(rng.normal(size=60).cumsum(), lw=rng.uniform(0.5, 3)) for _ in range(rng.integers(1, 5))]
    elif k == 1:
        ax.bar(range(8), rng.random(8))
    elif k == 2:
        ax.scatter(*rng.normal(size=(2, 200)))
    else:
        ax.hist(rng.gamma(2, size=500), 30)
    ax.set_title('Thickness')
    ax.set_xlabel('x')
    ax.grid(rng.random() < 0.5)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    g = to_grey(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB'))
    return 255 - g if rng.random() < 0.4 else g


def upside_down(rng, scan): return np.ascontiguousarray(scan()[::-1, ::rng.choice([-1, 1])])


def turned(rng, scan):
    "By a quarter, or by 45 to 135 degrees on black"
    if rng.random() < 0.5:
        return np.ascontiguousarray(np.rot90(scan(), rng.choice([1, 3])))
    return np.asarray(
        Image.fromarray(scan()).rotate(float(rng.choice([-1, 1]) * rng.uniform(45, 135)), Image.BILINEAR, expand=True)
    )


def vitreous(rng, scan):
    "What lies over the retina, and nothing else"
    g = scan()
    top = int(len(g)*(find_retina(g).rows(96).min()-.3))
    return np.asarray(Image.fromarray(g[:max(40, top)]).resize((512, 300)))


def negative(rng, scan): return 255-scan()


def nonscans(scans, n=500, seed=2026):
    """(kind, uint8 (H, W)) of `SHARE`, made of `scans` where a kind needs some; kinds whose pictures are not installed
    are left out, by name"""
    sources = dict(photo=shipped(*PHOTOS), fundus=shipped('retina.jpg'))
    for k, (name, share) in enumerate(SHARE.items()):
        if not sources.get(name, True):
            say(f'{name}: left out, as scikit-image is not installed.')
            continue
        for i in range(max(1, round(share * n / 500))):
            rng = np.random.default_rng([seed, k, i])
            yield (
                name,
                globals()[name](
                    rng, lambda: read_grey(scans[int(np.random.default_rng([seed, k, i, 1]).integers(len(scans)))])
                ),
            )


def share(hit):
    "Share, n and Wilson's 95 % interval"
    ci = binomtest(int(np.sum(hit)), len(hit)).proportion_ci(method='wilson')
    return dict(value=float(np.mean(hit)), low=float(ci.low), high=float(ci.high), k=int(np.sum(hit)), n=len(hit))


def text_of(s): return f"{s['k']} of {s['n']}, {100*s['value']:.1f} % ({100*s['low']:.1f}–{100*s['high']:.1f})"


def examined(model, images):
    "Traits, features, and milliseconds per picture of the traits"
    pairs = [placed(g, model.config['size'], model.config['view']) for g in images]
    t0 = time.perf_counter()
    t = np.stack([traits(*o) for o in pairs])
    ms = 1000*(time.perf_counter()-t0)/len(pairs)
    return t, model.features(np.stack([px for px, _ in pairs])), ms


def fitted(model, data):
    "`fit_inputs` with and without features on the train and val folders"
    paths = [p for s in ('train', 'val') for p in sorted((data/s).rglob('*.jpeg'))]
    t, f, _ = examined(model, paths)
    who = [patient(p) for p in paths]
    return dict(traits=fit_inputs(t, None, who), both=fit_inputs(t, f, who))


def kept(inputs):
    "What a bundle carries, for both rows of the table; its limits for traits are those of traits and features together"
    return dict(traits=inputs) | (dict(both=inputs) if 'features' in inputs else {})


def rows(inputs, groups):
    "{what: {group: share refused}}, and the sentences"
    said = {
        (w, g): np.array(doubts(i, t, f if w == 'both' else None))
        for w, i in inputs.items()
        for g, (t, f) in groups.items()
    }
    return {w: {g: share(said[w, g] != '') for g in groups} for w in inputs}, said


def sheet(path, pictures):
    "Pictures side by side, to look at"
    page = Image.new('L', (10*130, -(-len(pictures)//10)*90))
    for i, g in enumerate(pictures): page.paste(Image.fromarray(g).resize((128, 88)), (i % 10*130, i//10*90))
    page.save(path)


def main():
    from oct_classify.inference.model import OctModel

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('bundle', type=Path)
    p.add_argument('data', type=Path)
    p.add_argument('--external', type=Path)
    p.add_argument('--n', type=int, default=500)
    p.add_argument('--seed', type=int, default=2026)
    p.add_argument('--refit', action='store_true')
    p.add_argument('--json', type=Path)
    p.add_argument('--sheet', type=Path)
    a = p.parse_args()
    quiet()
    model = OctModel.load(a.bundle)
    inputs = kept(model.inputs) if model.inputs and not a.refit else fitted(model, a.data)
    scans = sorted((a.data / 'test').rglob('*.jpeg'))
    made = list(nonscans(scans, a.n, a.seed))
    if a.sheet:
        sheet(a.sheet, [g for i, (k, g) in enumerate(made) if i % 5 == 0])
    t, f, ms = examined(model, [g for _, g in made])
    kinds = np.array([k for k, _ in made])
    groups = dict(all=(t, f)) | {k: (t[kinds == k], f[kinds == k]) for k in SHARE if (kinds == k).any()}
    scored = dict(test=examined(model, scans)[:2])
    if a.external:
        scored['external'] = examined(model, [o for o in sorted(a.external.rglob('*')) if o.is_file()])[:2]
    out, said = rows(inputs, groups | scored)
    print(
        '| refused | '
        + ' | '.join({'traits': 'by traits alone', 'both': 'by traits and features'}[w] for w in inputs)
        + ' |\n|---|'
        + '---|' * len(inputs)
    )
    for g in groups | scored:
        print(
            f"| {'non-scans, all' if g == 'all' else g.replace('_', ' ')} | "
            + ' | '.join(text_of(out[w][g]) for w in inputs)
            + ' |'
        )
    print(
        f'{ms:.2f} ms per picture for the traits; {len(scans)} test scans of {len({patient(s) for s in scans})} '
        'patients'
    )
    for w in inputs:
        for path, why in zip(scans, said[w, 'test']):
            if why:
                print(w, path.name, why)
    if a.json:
        a.json.write_text(json.dumps(out, indent=1))


if __name__ == '__main__': main()
