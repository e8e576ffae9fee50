"Pictures that are no scans are refused, scans are answered: on phantoms, and on real scans where they are at hand."
import subprocess
import sys

import numpy as np
import pytest

from oct_classify.core import CLASSES, OctError, patient
from oct_classify.inference.ood import *
from oct_classify.phantoms.phantom import Phantom
from oct_classify.data.prepare import placed

pytestmark = pytest.mark.xdist_group('ood')  # one process for all: what the fixtures make is made once

SIZE = (112, 168)


@pytest.fixture(scope='module')
def bench(script):
    "The generator of the kinds that are reported, which no choice was made with"
    return script('bench/nonscans.py')


def seen(images): return np.stack([traits(*placed(g, SIZE)) for g in images])


def phantoms(seed, n):
    return [Phantom(seed, CLASSES[i % 4], patient=i // 2, number=i % 2, shape=(248, 256)).image for i in range(n)]


@pytest.fixture(scope='module')
def learned(): return fit_inputs(seen(phantoms(31, 240)), groups=np.arange(240)//2)


def test_fresh_phantoms_are_answered(learned):
    said = doubts(learned, seen(phantoms(32, 200)))
    assert sum(map(bool, said)) <= 6, said


def test_reported_kinds_are_refused(learned, bench, tmp_path):
    pytest.importorskip('skimage')
    pytest.importorskip('matplotlib')
    from PIL import Image

    scans = []
    for i, g in enumerate(phantoms(33, 24)):
        scans.append(tmp_path / f'{i}.png')
        Image.fromarray(g).save(scans[-1])
    made = list(bench.nonscans(scans, 150, seed=5))
    assert {k for k, _ in made} == set(bench.SHARE)
    said = doubts(learned, seen([g for _, g in made]))
    through = [k for (k, _), o in zip(made, said) if not o]
    assert len(through) <= 3, through


def test_kinds_do_not_overlap(bench):
    "What was chosen with is not what is reported on"
    photos = {p.stem for p in bench.shipped(*bench.PHOTOS)}
    assert not photos & set(bench.DEVELOPMENT)


def test_a_limit_by_features_adds_and_never_takes_away(learned):
    t, rng = seen(phantoms(31, 240)), np.random.default_rng(0)
    basis = rng.normal(size=(20, 300))
    f = rng.normal(size=(240, 20)) @ basis
    both = fit_inputs(t, f, np.arange(240) // 2)
    check_inputs(both)
    strange = rng.normal(size=(240, 300))
    assert all(doubts(both, t, strange)) and sum(map(bool, doubts(both, t, f))) <= 8
    assert doubts(both, t) == doubts(
        {k: v for k, v in both.items() if k not in ('mean', 'axes', 'features', 'features_limit')}, t
    )


def test_hostile_arrays_are_refused(learned):
    rng = np.random.default_rng(1)
    for k, v in learned.items():
        less = () if k in ('knots', 'centre', 'traits') else (np.full_like(v, -1), np.zeros_like(v))
        for bad in (v[:0], v[None], v.astype(complex), v.astype(object), 'x', None, *less):
            with pytest.raises(OctError): check_inputs(learned | {k: bad})
        if v.dtype.kind == 'f':
            for x in (np.nan, np.inf):
                w = v.copy()
                w[tuple(rng.integers(v.shape))] = x
                with pytest.raises(OctError): check_inputs(learned | {k: w})


def test_any_picture_gives_a_row(learned):
    "Any size, any view: a sentence or none, no exception, no warning"
    rng = np.random.default_rng(2)
    with np.errstate(all='raise', under='ignore'):
        for shape in ((32, 32), (33, 900), (900, 33), (60, 60), (64, 300)):
            for g in (
                rng.integers(0, 256, shape).astype(np.uint8),
                np.zeros(shape, np.uint8),
                np.full(shape, 255, np.uint8),
            ):
                for view in ('whole', 'crop', 'flat'):
                    for size in (32, (64, 96)):
                        assert all(doubts(learned, traits(*placed(g, size, view))[None]))


def test_answering_needs_numpy_alone(root):
    heavy = {'torch', 'timm', 'fastai', 'sklearn', 'matplotlib', 'pandas', 'skimage'}
    code = ('import sys, oct_classify.inference.ood; '
            f'print(sorted({{m.split(".")[0] for m in sys.modules}} & {heavy}))')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root).stdout.strip() == '[]'


def test_real_scans(real):
    "Cross-validated over patients on train and val: few are refused, and of scans turned over most are"
    from sklearn.model_selection import GroupKFold
    from oct_classify.core import read_grey
    paths = [p for s in ('train', 'val') for p in sorted((real/s).rglob('*.jpeg'))][::3]
    t, who = seen(paths), np.array([patient(p) for p in paths])
    turned = seen([read_grey(p)[::-1].copy() for p in paths[::4]])
    refused, caught = 0, []
    for a, b in GroupKFold(4).split(t, groups=who):
        i = fit_inputs(t[a], groups=who[a])
        refused += sum(map(bool, doubts(i, t[b])))
        mine = np.isin(np.arange(0, len(t), 4), b)
        caught += [bool(o) for o in doubts(i, turned[mine])]
    assert refused <= .04*len(t) and np.mean(caught) > .8, (refused, np.mean(caught))
