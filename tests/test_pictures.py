"""Pictures in the notebooks: each says in words what it shows, and a real kernel draws as many as are stored"""
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

API = sorted((Path(__file__).resolve().parent.parent/'nbs/api').rglob('[!.]*.ipynb'))
NOT_RUN = re.compile(r'^#\|\s*(eval:\s*false|slow|cuda|creds)', re.M)
ALT = re.compile(r'^#\|\s*(fig-alt: .+)', re.M)


def code_cells(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [c | dict(source=''.join(c['source'])) for c in cells if c['cell_type'] == 'code']


def pictures(cell):
    "How many pictures a cell has left"
    return sum(any(k.startswith('image/') for k in o.get('data', {})) for o in cell['outputs'])


def silent(path):
    "Pictures of a notebook that say nothing to who can't see them, come twice or would vanish on Run All"
    out = []
    for c in filter(pictures, code_cells(path)):
        said = ALT.search(c['source'])
        alt = yaml.safe_load(said[1])['fig-alt'] if said else None
        if not isinstance(alt, str) or len(alt.split()) < 5: out.append(f'{c["id"]} says not what is on its picture')
        if any(sum(k.startswith('image/') for k in o.get('data', {})) > 1 for o in c['outputs']):
            out.append(f'{c["id"]} holds its picture in two formats')
        if re.search(r'plt\.show|\bdisplay\(|pyplot', c['source']): out.append(f'{c["id"]} does not end on its picture')
    return out


DRAWN = [p for p in API if any(map(pictures, code_cells(p)))]


@pytest.mark.parametrize('path', DRAWN, ids=lambda p: p.stem)
def test_pictures_are_described(path): assert silent(path) == []


def test_the_check_sees_planted_faults(root, tmp_path):
    text = (root/'nbs/api/plotting.ipynb').read_text(encoding='utf-8')
    (tmp_path/'a.ipynb').write_text(text.replace('#| fig-alt', '#| fig-cap'))
    (said,) = silent(tmp_path/'a.ipynb')
    assert 'says not' in said
    (tmp_path/'b.ipynb').write_text(re.sub(r'fig-alt: [^\\]*', 'fig-alt: {a: b}', text))
    (said,) = silent(tmp_path/'b.ipynb')
    assert 'says not' in said
    (tmp_path/'c.ipynb').write_text(text.replace('"image/jpeg":', '"image/png": "", "image/jpeg":'))
    (said,) = silent(tmp_path/'c.ipynb')
    assert 'two formats' in said


def rerun(path, folder):
    "Pictures per cell that a fresh kernel draws, and those stored"
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    real = os.environ.get('OCT_DATA')
    cells = [c for c in code_cells(path) if not NOT_RUN.search(c['source'])]
    nb = new_notebook(cells=[new_code_cell(c['source'], id=c['id']) for c in cells])
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=folder))).execute()
    shown = [c for c in cells if real or not re.search(r'\bif real\b', c['source'])]
    drawn = {c['id']: pictures(c) for c in nb.cells}
    return {c['id']: drawn[c['id']] for c in shown}, {c['id']: pictures(c) for c in shown}


@pytest.mark.slow
@pytest.mark.parametrize('path', DRAWN, ids=lambda p: p.stem)
def test_run_all_keeps_the_pictures(path, tmp_path, monkeypatch):
    "Cells that take long, or need a GPU or an account, and real scans that are not at hand, keep what they have"
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    got, stored = rerun(path, tmp_path)
    assert got == stored


@pytest.mark.slow
def test_a_vanished_picture_is_seen(tmp_path):
    "Planted: a cell that stored a picture, and no longer ends on it"
    cell = dict(cell_type='code', id='a', metadata={}, execution_count=None, source=['1+1'])
    cell['outputs'] = [dict(output_type='execute_result', data={'image/png': ''}, metadata={}, execution_count=None)]
    (tmp_path/'n.ipynb').write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    got, stored = rerun(tmp_path/'n.ipynb', tmp_path)
    assert (got, stored) == (dict(a=0), dict(a=1))


SHOWN = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell('''
from IPython.core.pylabtools import select_figure_formats
import matplotlib
matplotlib.use('agg') # pyplot teaches a shell nothing with this one
from oct_classify.evaluation.figures import imaginary, plot_confusion

def kinds():
    shown = get_ipython().display_formatter.format(plot_confusion(imaginary(20)))[0]
    print(*(k for k in shown if k.startswith('image/')))

kinds()
select_figure_formats(get_ipython(), 'jpeg')
kinds()
''')
"""


def test_a_figure_shows_whatever_was_run_before():
    "In one format: PNG where none was chosen, else that which was"
    got = subprocess.run([sys.executable, '-c', SHOWN], check=True, capture_output=True, text=True)
    assert got.stdout.split() == ['image/png', 'image/jpeg'], got.stdout+got.stderr


def test_maps_in_the_report(tmp_path):
    "Where a few test scans were looked at; a network that gives no map, or no scan, leaves a sentence and no error"
    import numpy as np
    import pandas as pd
    from oct_classify.core import CLASSES
    from oct_classify.data.scans import scan_table
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.phantoms.phantom import phantom_folder
    from oct_classify.reporting.report import maps_section
    from oct_classify.training.network import network

    data = phantom_folder(tmp_path/'d', 0, 0, 3, shape=(124, 128))
    t = scan_table(data)[['path', 'label', 'patient']]
    p = np.full((len(t), 4), .1)
    p[np.arange(len(t)), (t.label.map(CLASSES.index)+(np.arange(len(t)) % 5 == 0)) % 4] = .7
    t[[f'p_{c}' for c in CLASSES]] = p
    net, config = network('resnet10t', size=64), dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64])
    b = save_bundle(tmp_path/'b', net, config | dict(view='whole'))
    html = maps_section(t, data, b)
    names = re.findall(r'<code>(.+?)</code>', html)
    wrong = t.path[(p.argmax(1) != t.label.map(CLASSES.index))]
    assert len(names) == len(set(names)) and [n in set(wrong) for n in names] == [False]*4+[True]*(len(names)-4)
    assert 4 < len(names) <= 8
    assert 'log-odds' in html and 'then the worst mistakes' in html
    for src in re.findall(r'src="data:image/jpeg;base64,(.+?)"', html): assert len(base64.b64decode(src)) < 60_000
    assert 'There are no heat maps. ' in maps_section(t, tmp_path/'nowhere', b)
    assert 'There are no heat maps. ' in maps_section(t, data, tmp_path/'none')
    assert 'img' not in maps_section(pd.concat([t]*2).iloc[:1], tmp_path, b)
