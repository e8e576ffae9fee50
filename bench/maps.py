"""Are the maps of `explain` to be believed? Every method on phantoms whose lesions are known, and on randomised
networks.

    python bench/maps.py [--bundle DIR] [--patients 300] [--seed 2026] [--random 5] [--json FILE] [--only
        evidence,cam,…]

Without --bundle, the fast recipe is trained first, on 100 phantom patients per class of 248x256 pixels, seen at
160x240 (seed 42). The maps are tested on
fresh patients of CNV, DME and DRUSEN, severities as they come, in JPEG as those it was trained on. Slow methods are
tested on the first patients only; n is in the table.
A hit: the maximum of the map, laid over the scan as stored, is within .03 of the height of a lesion. Chance: a point
drawn uniformly over the view; within the retina:
over that part of the view that lies between the inner surface and Bruch's membrane. Randomised: all weights drawn
anew, several seeds, the same scans, all of them;
once as the maps are, and once with maps of little evidence left blank, as `explain` draws them. A blank map scores
chance.
Intervals are 95 %, from resampling patients. Prints a table in markdown, and JSON.
"""
import argparse, copy, io, json, tempfile, time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

from oct_classify.core import *
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.bootstrap import share
from oct_classify.evaluation.heatmaps import *
from oct_classify.phantoms.phantom import Phantom, phantom_folder
from oct_classify.inference.model import OctModel
from oct_classify.data.prepare import placed
from oct_classify.training.learner import train_by
from oct_classify.data.split import split_table

SHAPE, LESIONS = (248, 256), ('CNV', 'DME', 'DRUSEN')
MOST = dict(grad_cam=150, layer_cam=150, integrated_gradients=45, occlusion=15) # patients, where a method is slow
NULL = dict(
    evidence=60, cam=60, grad_cam=30, layer_cam=30, integrated_gradients=12, occlusion=0
)  # patients per randomised network


def trained():
    with tempfile.TemporaryDirectory() as d:
        t = split_table(scan_table(phantom_folder(d, 100, 0, 10, 1, seed=42, shape=SHAPE)))
        o = train_by('fast', t, d, size=(160, 240), weights='imagenet')
    return OctModel(o.net, dict(temperature=1., mirror=True, thresholds=dict(urgent=.5)) | o.info)


def jpeg(scan):
    "A scan as a file's bytes, as `phantom_folder` stores it"
    file = io.BytesIO()
    Image.fromarray(scan).save(file, 'jpeg', quality=75)
    return file.getvalue()


class Case:
    "A phantom patient: pixels, way back, and where its lesions and its retina are"
    def __init__(self, model, seed, i):
        p = Phantom(seed, LESIONS[i % 3], patient=i, shape=SHAPE)
        self.label, self.mask = CLASSES.index(p.label), p.lesion
        self.px, self.place = placed(jpeg(p.image), model.config['size'], model.config['view'])
        self.seen = self.place.back(np.ones((2, 2))) > 0
        y = np.arange(SHAPE[0])[:, None]
        self.retina = (y >= p.layers[0]) & (y < p.layers[-1]) & self.seen


def energy_in_mask(heat, mask):
    "The share of a map's positive part that lies in the mask (Wang et al., CVPR workshops 2020); 0 without such a part"
    p = np.clip(heat, 0, None)
    return float(p[mask].sum()/p.sum()) if p.any() else 0.


def removal_curve(model, pixels, maps, target, insert=False):
    """Probability (N, 11) of class numbers `target` (N,) after each tenth of the pixels, the map's strongest first,
    went to the blurred scan's, or came from there

    Deletion and insertion of Petsiuk et al., BMVC 2018; pixels (N, H, W) uint8 are prepared, maps (N, H, W)."""
    order = np.argsort(-maps.reshape(len(maps), -1), 1, kind='stable')
    rank = np.argsort(order, 1).reshape(maps.shape) / maps[0].size  # 0: strongest
    dull = blurred(torch.from_numpy(pixels).float(), 0.1).round().numpy().astype(np.uint8)
    stages = [np.where((rank < k / 10) == insert, pixels, dull) for k in range(11)]
    return np.stack([model.probs(o)[np.arange(len(o)), target] for o in stages], 1)


def area(curve):
    "Area under curves (N, steps+1) over 0 to 1"
    return np.trapezoid(curve, dx=1/(curve.shape[1]-1), axis=1)


@torch.no_grad()
def randomised(model, pixels, seed=0):
    """A copy of a model with its weights drawn anew (Adebayo et al., NeurIPS 2018); pixels (N, H, W) uint8 are for the
    batch-norm statistics"""
    net = copy.deepcopy(model.net)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for m in net.modules():
            if hasattr(m, 'reset_parameters'):
                m.reset_parameters()
            if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
                m.momentum = None  # a plain mean over what follows
                m.train()
        for b in torch.from_numpy(pixels).split(32):
            net(b.to(model.device))
    return OctModel(net, model.config, model.device)


def agreement(a, b):
    "Spearman's rank correlation (N,) of maps (N, H, W) with maps (N, H, W), of every fourth row and column"
    return np.array([spearmanr(o[::4, ::4].ravel(), p[::4, ::4].ravel()).statistic for o, p in zip(a, b)])


def pointed(cases, maps):
    back = [c.place.back(m) for c, m in zip(cases, maps)]
    return hits(back, [c.mask for c in cases], [c.seen for c in cases]), np.array(
        [energy_in_mask(b, c.mask) for b, c in zip(back, cases)]
    )


def spread(maps):
    "Smallest, median and largest sum of a map's positive part: log-odds for methods that are additive, of no unit else"
    return [float(o) for o in np.quantile(strength(maps), (0, .5, 1))]


def text(o):
    return '–' if o is None or o['value'] is None else f"{o['value']:.3f} ({o['low']:.3f}–{o['high']:.3f}), n {o['n']}"


def measure(model, cases, right, name, noise, curves=30):
    n, t0 = min(MOST.get(name, len(cases)), len(cases)), time.time()
    use = [c for c, r in zip(cases[:n], right) if r]
    px, y = np.stack([c.px for c in use]), np.array([c.label for c in use])
    maps = heat_map(model, px, y, name)
    took = (time.time() - t0) / len(use)
    hit, energy = pointed(use, maps)
    out = dict(
        method=name,
        hit=share(hit),
        energy=share(energy),
        seconds=took,
        strength=spread(maps),
        blank=float((~maps.any((1, 2))).mean()),
    )
    for k in LESIONS:
        out[f'hit_{k}'] = share(hit, y == CLASSES.index(k))
    k = min(curves, len(use))
    for key, ins in (('deletion', False), ('insertion', True)):
        out[key] = share(area(removal_curve(model, px[:k], maps[:k], y[:k], ins)))
    m = min(NULL[name], n)
    if m:
        first = cases[:m]
        px, y = np.stack([c.px for c in first]), np.array([c.label for c in first])
        mine, got, shown, rho, force = heat_map(model, px, y, name), [], [], [], []
        for r in noise:
            o = heat_map(r, px, y, name, least=0)
            got.append(pointed(first, o)[0])
            rho.append(np.abs(agreement(mine, o)))
            force.append(o)
            shown.append(pointed(first, blank(o))[0] if name in ADDITIVE else got[-1])
        out |= dict(
            randomised=share(np.concatenate(got), who=np.tile(np.arange(m), len(noise))),
            randomised_each=[float(g.mean()) for g in got],
            shown=share(np.concatenate(shown), who=np.tile(np.arange(m), len(noise))),
            shown_each=[float(g.mean()) for g in shown],
            correlation=share(np.concatenate(rho), who=np.tile(np.arange(m), len(noise))),
        )
        out['strength_randomised'] = spread(np.concatenate(force))
        flat = hits([np.zeros(SHAPE)] * m, [c.mask for c in first], [c.seen for c in first])
        inside = hits([np.zeros(SHAPE)] * m, [c.mask for c in first], [c.retina for c in first])
        out |= dict(chance_randomised=float(flat.mean()), chance_retina_randomised=float(inside.mean()))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--bundle')
    p.add_argument('--patients', type=int, default=300)
    p.add_argument('--seed', type=int, default=2026)
    p.add_argument('--random', type=int, default=5)
    p.add_argument('--json')
    p.add_argument('--only', default='evidence,cam,layer_cam,grad_cam,integrated_gradients,occlusion')
    a = p.parse_args()
    quiet()
    model = OctModel.load(a.bundle) if a.bundle else trained()
    model.net.requires_grad_(False)
    with ThreadPoolExecutor(2) as ex:
        cases = list(ex.map(lambda i: Case(model, a.seed, i), range(a.patients)))
    px, y = np.stack([c.px for c in cases]), np.array([c.label for c in cases])
    right = model.logits(px).argmax(1) == y
    flat = [np.zeros(SHAPE)] * len(cases)
    ok = [c for c, r in zip(cases, right) if r]
    out = dict(
        accuracy=share(right),
        chance=share(hits(flat, [c.mask for c in ok], [c.seen for c in ok])),
        chance_in_retina=share(hits(flat, [c.mask for c in ok], [c.retina for c in ok])),
        lesion_share=share([c.mask[c.seen].mean() for c in ok]),
        methods=[],
    )
    for k, v in out.items():
        if k != 'methods':
            print(f'{k.replace("_", " ")}: {text(v)}', flush=True)
    noise = [randomised(model, px[:64], s) for s in range(a.random)]
    print(
        '\n| method | hit | CNV / DME / DRUSEN | randomised: hit | … as drawn | correlation with randomised | energy '
        '| deletion | insertion | s per scan |\n|---|---|---|---|---|---|---|---|---|---|',
        flush=True,
    )
    for name in a.only.split(','):
        o = measure(model, cases, right, name, noise)
        out['methods'].append(o)
        each = ' / '.join(f"{o[f'hit_{k}']['value']:.2f}" for k in LESIONS)
        print(
            f"| {name} | {text(o['hit'])} | {each} | {text(o.get('randomised'))} | {text(o.get('shown'))} | "
            f"{text(o.get('correlation'))} | {text(o['energy'])} | {text(o['deletion'])} | {text(o['insertion'])} | "
            f"{o['seconds']:.2f} |",
            flush=True,
        )
        if a.json:
            with atomic_write(a.json) as f:
                json.dump(out, f, indent=1)
    print(json.dumps(out))


if __name__ == '__main__': main()
