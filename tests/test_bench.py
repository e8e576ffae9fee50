"Scripts of bench/ run for hours and in no test: each still parses, imports only what is there, and names its options."
import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch


def parsed(path): return ast.parse(path.read_text(encoding='utf-8'))


def defined(path):
    "Names that a file defines itself; what it took from elsewhere is not its to give"
    out = set()
    for n in parsed(path).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            out.add(n.name)
        elif isinstance(n, (ast.Assign, ast.AnnAssign)):
            out |= {
                o.id
                for t in getattr(n, 'targets', [getattr(n, 'target', None)])
                for o in ast.walk(t)
                if isinstance(o, ast.Name)
            }
    return out


def imported(tree, package, beside):
    "(file, name) of every import by name from the package, or from a script beside"
    for n in ast.walk(tree):
        if not isinstance(n, ast.ImportFrom) or n.level:
            continue
        top, *rest = n.module.split('.')
        for a in n.names:
            if top == 'oct_classify':
                yield (package.joinpath(*rest).with_suffix('.py'), a.name) if rest else (package / f'{a.name}.py', '*')
            elif (beside / f'{top}.py').exists():
                yield beside / f'{top}.py', a.name


def options(tree):
    "The options that a script shows in its help"
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'attr', '') == 'add_argument']
    shown = [
        n for n in calls if not any(k.arg == 'help' and getattr(k.value, 'attr', '') == 'SUPPRESS' for k in n.keywords)
    ]
    return {a.value for n in shown for a in n.args if isinstance(a, ast.Constant) and a.value.startswith('--')}


def faults(script, root):
    "What is wrong with a script"
    tree, package = parsed(script), root / 'oct_classify'
    gone = [
        f'{f.stem}.{name}'
        for f, name in imported(tree, package, root / 'bench')
        if not f.exists() or name != '*' and name not in defined(f)
    ]
    usage = (ast.get_docstring(tree) or '').partition('\n\n')[2].partition('\n\n')[0]
    silent = sorted(o for o in options(tree) if not re.search(rf'{o}(?![\w-])', usage))
    return (
        gone
        + [f'usage lacks {o}' for o in silent]
        + ([] if f'python bench/{script.name}' in usage else ['no usage line'])
    )


def scripts(): return sorted((Path(__file__).parent.parent/'bench').glob('*.py'))


@pytest.mark.parametrize('script', scripts(), ids=lambda p: p.stem)
def test_scripts_are_whole(script, root): assert faults(script, root) == []


def test_planted_faults_are_found(root, tmp_path):
    f = tmp_path / 'planted.py'
    f.write_text(
        '''"""What it measures.

    python bench/planted.py [--repeat 5]
"""
import argparse
from gpu import synthetic_pack, no_such_pack
from oct_classify.cli import hardware
from oct_classify.core import *
from oct_classify.core import CLASSES, no_such_name
from oct_classify.nowhere import *
p = argparse.ArgumentParser()
p.add_argument('--repeat'); p.add_argument('--forgotten'); p.add_argument('--inner', help=argparse.SUPPRESS)
''',
        encoding='utf-8',
    )
    assert faults(f, root) == [
        'gpu.no_such_pack',
        'cli.hardware',
        'core.no_such_name',
        'nowhere.*',
        'usage lacks --forgotten',
    ]


def test_measures_of_maps(script):
    "A map that points at the one bright spot that a network reads, its opposite, and weights drawn anew"
    maps = script('bench/maps.py')

    class Spot(torch.nn.Module):
        def forward(self, x):
            z = (x.float()[:, :8, :8].mean((1, 2)) - 170) / 4  # bright: yes; blurred: no
            return torch.stack([z, 0 * z], 1)

    config = dict(classes=('yes', 'no'), size=[32, 32], view='whole', mirror=False, temperature=1.0, thresholds={})
    spot, scan = maps.OctModel(Spot(), config), np.zeros((1, 32, 32), np.uint8)
    scan[:, :8, :8] = 200
    good = scan / 200
    curves = [
        maps.removal_curve(spot, scan, m, [0], insert) for m, insert in ((good, False), (-good, False), (good, True))
    ]
    deleted, badly, inserted = map(maps.area, curves)
    assert curves[0].shape == (1, 11) and deleted < 0.2 < 0.8 < badly and inserted > 0.8
    assert maps.area(np.array([[1.0, 0.5, 0.0]])) == [0.5]
    assert maps.energy_in_mask(good[0] - 0.5, good[0] > 0) == 1 and maps.energy_in_mask(0 * good[0], good[0] > 0) == 0
    noise = np.random.default_rng(0).normal(size=(2, 64, 64))
    assert np.allclose(maps.agreement(noise, 2 * noise + 1), 1) and np.allclose(maps.agreement(noise, -noise), -1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 2), torch.nn.BatchNorm1d(2)).eval()
    model = maps.OctModel(net, config)
    model.net[0].register_forward_pre_hook(lambda _, args: (args[0].float(),))
    scans = np.random.default_rng(0).integers(0, 256, (8, 32, 32), np.uint8)
    drawn = [maps.randomised(model, scans, seed).net[1].weight for seed in (1, 1, 2)]
    assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:]) and not torch.equal(drawn[0], net[1].weight)
