"""A bundle from hand to hand: stopped while it is written, read by strangers and from strangers"""
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from oct_classify.core import CLASSES, OctError
from oct_classify.inference import bundle as bundles
from oct_classify.inference.bundle import add_int8, add_onnx, bundle_files, load_config, save_bundle
from oct_classify.inference.model import OctModel
from oct_classify.training.network import network

pytestmark = pytest.mark.xdist_group('bundle')  # one process for all: what the fixtures make is made once
CONFIG = dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole', thresholds=dict(confidence=0.1))
PIXELS = np.random.default_rng(0).integers(0, 255, (8, 64, 64), np.uint8)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    "A bundle for PyTorch alone"
    return save_bundle(tmp_path_factory.mktemp('plain') / 'bundle', network('resnet10t', size=64), CONFIG)


@pytest.fixture(scope='module')
def exported(tmp_path_factory, plain):
    "The same for ONNX Runtime, in eight bits too"
    for o in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(o)
    b = shutil.copytree(plain, tmp_path_factory.mktemp('exported') / 'bundle')
    add_onnx(b)
    add_int8(b, PIXELS)
    return b


@pytest.fixture
def copy(exported, tmp_path): return shutil.copytree(exported, tmp_path / 'bundle')


@pytest.mark.parametrize('int8', [False, True])
def test_an_export_stopped_anywhere_leaves_a_bundle_that_answers(int8, exported, copy, monkeypatch):
    "Killed between two files, it left a bundle that called itself damaged"
    class Killed(BaseException): pass

    def write(*args):
        folder = Path(args[1])
        for f in exported.glob('model.int8.onnx' if int8 else 'model.onnx*'):
            (folder / f.name).write_bytes(f.read_bytes() + b'\n')  # other bytes
    for o in ('write_onnx', 'write_int8'): monkeypatch.setattr(f'oct_classify.inference.onnx.{o}', write)
    replace, left = os.replace, [0]

    def failing(*args):
        left[0] -= 1
        if left[0] < 0: raise Killed
        replace(*args)
    monkeypatch.setattr(os, 'replace', failing)
    for k in range(99):
        left[0] = k
        try:
            add_int8(copy, PIXELS) if int8 else add_onnx(copy)
            break
        except Killed: pass
        config = load_config(copy)
        assert OctModel.load(copy, device='cpu').probs(PIXELS).shape == (8, 4)
        try: bundles.intact(copy, config, 'model.int8.onnx' if int8 else 'model.onnx')
        except OctError as e: assert 'write it with oct-classify export' in str(e)
        left[0] = 99
        shutil.rmtree(copy)
        shutil.copytree(exported, copy)
    assert k >= 4 and not list(copy.glob('.*')) and bundle_files(copy) == bundle_files(exported)


def test_a_killed_export_leaves_nothing_once_it_is_done_again(copy, exported, monkeypatch):
    (copy / '.made').mkdir()
    (copy / '.made' / 'model.onnx').write_bytes(b'half')
    monkeypatch.setattr('oct_classify.inference.onnx.write_onnx',
                        lambda net, d, size: [shutil.copy(f, d) for f in exported.glob('model.onnx*')])
    add_onnx(copy)
    assert sorted(o.name for o in copy.iterdir()) == sorted(o.name for o in exported.iterdir())


def test_an_export_that_was_stopped_is_said(copy, cli, tmp_path):
    config = load_config(copy)
    config['sums'].pop('model.onnx')
    bundles.write_config(copy, config, [])
    code, _, said = cli('predict', copy, copy / 'config.json', '--engine', 'onnx')
    assert code == 2 and f'write it with oct-classify export {copy}' in said


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX permissions')
def test_whoever_gets_a_bundle_may_read_all_of_it(exported, tmp_path):
    "model.onnx.data was for its owner alone"
    (tmp_path / 'a').touch()
    usual = stat.S_IMODE((tmp_path / 'a').stat().st_mode)
    assert {stat.S_IMODE(f.stat().st_mode) for f in exported.iterdir()} == {usual}
    b = shutil.copytree(exported, tmp_path / 'b')
    for f in b.iterdir(): f.chmod(0o600)
    save_bundle(b, None, load_config(b))
    assert {stat.S_IMODE(f.stat().st_mode) for f in b.iterdir()} == {usual}


def test_a_bundle_says_nothing_of_where_it_was_made(exported, tmp_path, cli, root):
    "Stack traces of the exporter and the path of a weights file went with a bundle"
    import safetensors.torch
    import torch
    from oct_classify.phantoms.phantom import phantom_folder
    from oct_classify.training.network import create
    data, weights = phantom_folder(tmp_path / 'data', 6, 1, 3, shape=(124, 128)), tmp_path / 'own.safetensors'
    safetensors.torch.save_file(create('resnet10t', (64, 64)).state_dict(), weights)
    code, _, said = cli('run', data, '--out', tmp_path / 'out', '--arch', 'resnet10t', '--size', 64, '--epochs', 0,
                        '--weights', weights)
    assert code == 0, said
    places = {str(o).encode() for o in (root, Path.home(), Path(torch.__file__).parent.parent, tmp_path)} - {b'/'}
    files = [f for d in (exported, tmp_path / 'out') for f in d.rglob('*') if f.is_file()]
    assert [f for f in files for o in places if o in f.read_bytes()] == []
    assert json.loads((tmp_path / 'out/bundle/config.json').read_text())['weights'] == 'own.safetensors'
