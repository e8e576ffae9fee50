"Scripts of bench/ run for hours and in no test: each still parses, imports only what is there, and names its options."
import ast
import re
from pathlib import Path

import pytest


def parsed(path): return ast.parse(path.read_text(encoding='utf-8'))


def defined(path):
    "Names that a file defines itself; what it took from elsewhere is not its to give"
    out = set()
    for n in parsed(path).body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): out.add(n.name)
        elif isinstance(n, (ast.Assign, ast.AnnAssign)): out |= {o.id for t in getattr(n, 'targets', [getattr(n, 'target', None)]) for o in ast.walk(t) if isinstance(o, ast.Name)}
    return out


def imported(tree, package, beside):
    "(file, name) of every import by name from the package, or from a script beside"
    for n in ast.walk(tree):
        if not isinstance(n, ast.ImportFrom) or n.level: continue
        top, *rest = n.module.split('.')
        for a in n.names:
            if top == 'oct_classify': yield (package.joinpath(*rest).with_suffix('.py'), a.name) if rest else (package/f'{a.name}.py', '*')
            elif (beside/f'{top}.py').exists(): yield beside/f'{top}.py', a.name


def options(tree):
    "The options that a script shows in its help"
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'attr', '') == 'add_argument']
    shown = [n for n in calls if not any(k.arg == 'help' and getattr(k.value, 'attr', '') == 'SUPPRESS' for k in n.keywords)]
    return {a.value for n in shown for a in n.args if isinstance(a, ast.Constant) and a.value.startswith('--')}


def faults(script, root):
    "What is wrong with a script"
    tree, package = parsed(script), root/'oct_classify'
    gone = [f'{f.stem}.{name}' for f, name in imported(tree, package, root/'bench') if not f.exists() or name != '*' and name not in defined(f)]
    usage = (ast.get_docstring(tree) or '').partition('\n\n')[2].partition('\n\n')[0]
    silent = sorted(o for o in options(tree) if not re.search(rf'{o}(?![\w-])', usage))
    return gone + [f'usage lacks {o}' for o in silent] + ([] if f'python bench/{script.name}' in usage else ['no usage line'])


def scripts(): return sorted((Path(__file__).parent.parent/'bench').glob('*.py'))


@pytest.mark.parametrize('script', scripts(), ids=lambda p: p.stem)
def test_scripts_are_whole(script, root): assert faults(script, root) == []


def test_planted_faults_are_found(root, tmp_path):
    f = tmp_path/'planted.py'
    f.write_text('''"""What it measures.

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
''', encoding='utf-8')
    assert faults(f, root) == ['gpu.no_such_pack', 'cli.hardware', 'core.no_such_name', 'nowhere.*', 'usage lacks --forgotten']
