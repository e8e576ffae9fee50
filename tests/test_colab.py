"What the install line and settings.ini promise about Colab's versions; make test-colab runs those versions."
import json
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope='module')
def colab(script): return script('.ci/colab.py')


@pytest.fixture
def settings(root):
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini


def test_a_changed_package_is_found(colab):
    before = colab.versions('ipywidgets==7.7.1\nkaggle==2.0.2\ntorch==2.11.0+cu128\n')
    assert colab.changed(before, before|dict(onnx='1.18.0')) == {}
    after = dict(ipywidgets='8.1.9', torch='2.11.0+cu128')
    assert colab.changed(before, after) == dict(ipywidgets=('7.7.1', '8.1.9'), kaggle=('2.0.2', None))


def notebooks(root): return [p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]


def test_every_notebook_installs_as_the_one_that_is_tried(colab, root, settings):
    line = re.compile(r'pip install -q -c here\.txt "oct_classify\[([\w,]+)\] @ git\+https://[^"]+"')
    for nb in notebooks(root):
        first, second = colab.install_lines(nb)
        assert first == 'pip list --format=freeze > here.txt', nb
        assert set(line.fullmatch(second)[1].split(',')) <= set(settings['extras']), nb


def names(requirements): return {canonicalize_name(o) for o in re.findall(r'^([\w.-]+)(?=[\[=>])', requirements, re.M)}


def imported(notebook, owner=packages_distributions()):
    "Packages that code cells import at their left margin"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    text = '\n'.join(o for o in code if 'eval: false' not in o)
    modules = {m.partition('.')[0] for m in re.findall(r'^(?:import|from) ([\w.]+)', text, re.M)}
    return {canonicalize_name(owner.get(m, [m])[0]) for m in modules-set(sys.stdlib_module_names)-{'oct_classify'}}


def lacking(notebook, install, there, extras):
    "Packages that a notebook imports, but that neither Colab has nor the line `install` brings"
    named = re.search(r'\[([\w,]+)\]', install)[1].split(',')
    return imported(notebook) - there - {p for k in named for p in names(extras[k])}


def test_every_notebook_names_the_extras_that_colab_lacks(colab, root, settings):
    there = names((root/'constraints-colab.txt').read_text(encoding='utf-8').partition('# Not in Colab')[0])
    for nb in notebooks(root): assert lacking(nb, colab.install_lines(nb)[1], there, settings['extras']) == set(), nb
    maps = root/'nbs/api/evaluation/heatmaps.ipynb'
    assert lacking(maps, 'oct_classify[offline]', there, settings['extras']) == {'captum'}


def bounds(ini):
    "{requirement: its lower bound}"
    written = '\n'.join(v for part in ini.values() for v in part.values())
    needs = [Requirement(o) for o in re.findall(r'^[\w.-]+(?:\[\w+\])?[=>]=\S+$', written, re.M)]
    return {canonicalize_name(r.name): Version(o.version) for r in needs for o in r.specifier}


def untested(ini, constraints):
    "Requirements whose lower bound is another version than the one that is run"
    run = {canonicalize_name(k): Version(v) for k, v in re.findall(r'^([\w.-]+)==([\w.]+)', constraints, re.M)}
    return {k: str(v) for k, v in bounds(ini).items() if run.get(k) != v}


def test_every_lower_bound_is_a_version_that_is_run(root, settings):
    constraints = (root/'constraints-colab.txt').read_text(encoding='utf-8')
    assert len(bounds(settings)) > 40 and untested(settings, constraints) == {}
    settings['extras']['onnx'] = 'onnx>=1.17\nonnxruntime>=1.32'
    assert untested(settings, constraints) == {'onnx': '1.17'}
