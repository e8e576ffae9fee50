"What the install line and settings.ini promise about Colab's versions; make test-colab runs those versions."
import importlib.util
import re
from configparser import ConfigParser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope='module')
def colab(root):
    "The script .ci/colab.py as a module"
    spec = importlib.util.spec_from_file_location('colab', root/'.ci/colab.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_every_notebook_installs_as_the_one_that_is_tried(colab, root, settings):
    line = re.compile(r'pip install -q -c here\.txt "oct_classify\[([\w,]+)\] @ git\+https://[^"]+"')
    for nb in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in nb.parts: continue
        first, second = colab.install_lines(nb)
        assert first == 'pip list --format=freeze > here.txt', nb
        assert set(line.fullmatch(second)[1].split(',')) <= set(settings['extras']), nb


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
    settings['extras']['onnx'] = 'onnx>=1.17\nonnxruntime>=1.23'
    assert untested(settings, constraints) == {'onnx': '1.17'}
