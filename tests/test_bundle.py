"""A bundle from hand to hand: stopped while it is written, read by strangers and from strangers"""
import json
import os
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
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


def needs_onnx():
    "A skip by name; not by an import, at which ONNX Runtime would call its makers"
    for o in ('onnx', 'onnxscript', 'onnxruntime'):
        if not find_spec(o): pytest.skip(f'{o} is not installed')


@pytest.fixture(scope='module')
def exported(tmp_path_factory, plain):
    "The same for ONNX Runtime, in eight bits too"
    needs_onnx()
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


@pytest.mark.slow
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


def bomb(bundle, *nodes, stored=(), more=()):
    "A bundle whose model.onnx, with a sum that fits, works out `y` by these nodes beside what it must give"
    onnx = pytest.importorskip('onnx')
    h = onnx.helper
    stored = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in dict(stored).items()]
    nodes = [h.make_node(*n[:3], **n[3] if n[3:] else {}) for n in nodes]
    ends = [('Cast', ['pixels'], ['f'], dict(to=1)), ('ReduceMean', ['f', 'axes'], ['m'], dict(keepdims=0)),
            ('Unsqueeze', ['m', 'last'], ['n']), ('ReduceMax', ['y'], ['r'], dict(keepdims=0)),
            ('Add', ['n', 'r'], ['features']), ('Mul', ['features', 'four'], ['logits'])]
    for k, v in dict(axes=[1, 2], last=[1]).items(): stored.append(onnx.numpy_helper.from_array(np.array(v), k))
    stored.append(onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), 'four'))
    value = h.make_tensor_value_info
    graph = h.make_graph(
        [*nodes, *(h.make_node(*n[:3], **n[3] if n[3:] else {}) for n in ends)], 'g',
        [value('pixels', 2, ['n', 64, 64])], [value('logits', 1, ['n', 4]), value('features', 1, ['n', 'f'])], stored)
    model = h.make_model(graph, opset_imports=[h.make_opsetid('', 20)], ir_version=10, **dict(more))
    onnx.save(model, bundle / 'model.onnx')
    (bundle / 'model.onnx.data').write_bytes(b'')
    bundles.write_config(bundle, load_config(bundle), ['model.onnx', 'model.onnx.data'])
    return bundle


def loop():
    "Nodes that never end"
    from onnx import helper as h
    always = h.make_node('Identity', ['go'], ['on'])
    body = h.make_graph([always], 'b', [h.make_tensor_value_info('i', 7, []), h.make_tensor_value_info('go', 9, [])],
                        [h.make_tensor_value_info('on', 9, [])])
    return h.make_node('Loop', ['', 'yes'], [], body=body)


FILL = ('ConstantOfShape', ['s'], ['c'])
SQUARE = dict(s=np.array([1500, 1500]))


def test_a_graph_that_asks_for_little_is_answered(plain, tmp_path):
    b = bomb(shutil.copytree(plain, tmp_path / 'b'), FILL, ('Relu', ['c'], ['y']), stored=SQUARE)
    assert OctModel.load(b, engine='onnx').probs(PIXELS).shape == (8, 4)


@pytest.mark.parametrize('name', ['huge', 'expanded', 'outer', 'tiled', 'doubled', 'padded', 'many'])
def test_a_graph_that_asks_for_too_much_is_refused(name, plain, tmp_path, monkeypatch):
    "A constant of terabytes was made while the bundle loaded"
    ones, wide = np.ones((30_000, 1), np.float32), np.array([300_000, 300_000])
    doubled = [('Concat', [f'd{i}', f'd{i}'], [f'd{i+1}'], dict(axis=0)) for i in range(20)]
    cases = dict(
        huge=([('ConstantOfShape', ['s'], ['y'])], dict(s=np.array([10**13]))),
        expanded=([('Expand', ['a', 's'], ['y'])], dict(a=np.ones((1, 1), np.float32), s=wide)),
        outer=([('Add', ['a', 'b'], ['y'])], dict(a=ones, b=ones.T)),
        tiled=([('Tile', ['a', 's'], ['y'])], dict(a=np.ones((1, 1), np.float32), s=wide)),
        doubled=([*doubled, ('Identity', ['d20'], ['y'])], dict(d0=ones)),
        padded=([('Pad', ['a', 's'], ['y'])], dict(a=ones, s=np.array([0, 0, 10**6, 10**6]))),
        many=([('Relu', [f'd{i}'], [f'd{i+1}']) for i in range(20_000)]+[('Relu', ['d20000'], ['y'])], dict(d0=ones)),
    )
    monkeypatch.setattr('oct_classify.inference.onnx.most_memory', lambda: 10**9)
    nodes, stored = cases[name]
    b = bomb(shutil.copytree(plain, tmp_path / 'b'), *nodes, stored=stored)
    with pytest.raises(OctError, match='more memory than there is|or fails|operations'):
        OctModel.load(b, engine='onnx')


def test_a_graph_without_end_is_refused(plain, tmp_path):
    onnx = pytest.importorskip('onnx')
    b = bomb(shutil.copytree(plain, tmp_path / 'b'), ('Relu', ['f'], ['y']), stored=dict(yes=np.array(True)))
    model = onnx.load(b / 'model.onnx')
    model.graph.node.insert(0, loop())

    def refused(why):
        onnx.save(model, b / 'model.onnx')
        bundles.write_config(b, load_config(b), ['model.onnx'])
        with pytest.raises(OctError, match=why): OctModel.load(b, engine='onnx')
    refused('holds the operator Loop')
    model.graph.node[0].op_type = 'Relu'  # with a graph within
    refused('holds loops, functions or files of its own')
    model.graph.node.pop(0)
    model.graph.node[0].domain = 'com.microsoft'
    refused('of its own')
    model.graph.node[0].domain = ''
    far = model.graph.initializer.add(name='far', data_type=1, dims=[1], data_location=1)
    far.external_data.add(key='location', value='../../secret')
    refused('of its own')


def test_a_graph_that_takes_too_long_is_refused(plain, tmp_path, monkeypatch):
    chain = [('MatMul', [f'c{i}' if i else 'c', 'c'], [f'c{i+1}']) for i in range(500)]
    b = bomb(shutil.copytree(plain, tmp_path / 'b'), FILL, *chain, ('Relu', ['c500'], ['y']), stored=SQUARE)
    from oct_classify.inference import model, onnx
    monkeypatch.setattr(model, 'try_graph', lambda session, size: onnx.try_graph(session, size, 0.3))
    with pytest.raises(OctError, match='takes too long'): OctModel.load(b, engine='onnx')


def test_a_network_that_asks_for_too_much_is_refused(plain, tmp_path, monkeypatch):
    b = shutil.copytree(plain, tmp_path / 'b')
    monkeypatch.setattr('oct_classify.inference.onnx.most_memory', lambda: 10**6)
    with pytest.raises(OctError, match='more memory than there is'): bundles.load_net(b, load_config(b))


ODD = ['Infinity', '-Infinity', 'NaN', '1e999', '1'*400, '-1', 'true', '"x"', '[]', '{"policy": []}', '[[1]]', 'null']


def test_odd_values_of_a_config_are_damage_or_harmless(plain, tmp_path, cli):
    "An infinite size, or a request that was a list, ended with code 70"
    b = shutil.copytree(plain, tmp_path / 'b')
    config = json.loads((b / 'config.json').read_text())
    for key in [*bundles.CONFIG_TYPES, *bundles.MORE_TYPES]:
        for odd in ODD:
            text = json.dumps(config | {key: 'ODD'}).replace('"ODD"', odd)
            (b / 'config.json').write_text(text)
            try: loaded = load_config(b)
            except OctError: continue
            assert odd in ('null', '-1', '[]', '"x"', '{"policy": []}', '[[1]]') or loaded[key] is True, (key, odd)
            bundles.course(loaded), bundles.model_card(loaded, [], '')
    for odd in ODD[:5]:
        (b / 'config.json').write_text(json.dumps(config | dict(size=['ODD', 64])).replace('"ODD"', odd))
        code, _, said = cli('predict', b, b / 'config.json')
        assert (code, said.count('\n')) == (2, 1) and 'get the bundle again' in said


def test_odd_notes_of_parts_and_packs_are_begun_anew(tmp_path):
    from oct_classify.inference.batch import Parts
    from oct_classify.training.checkpoint import newest, noted_threads
    from oct_classify.training.pack import UnfinishedPack, open_pack
    import torch
    for odd in [*ODD, '['*10**5]:
        Parts(tmp_path / 'p', ['a.png'], size=7)
        plan = json.loads((tmp_path / 'p/plan.json').read_text())
        (tmp_path / 'p/plan.json').write_text(json.dumps(plan | dict(size='ODD')).replace('"ODD"', odd))
        try: assert Parts(tmp_path / 'p', ['a.png'], size=7, replace=True).size in (7, int('1'*400))
        except ValueError: pytest.fail(odd)
        (tmp_path / 'p/plan.json').write_text(odd)
        assert Parts(tmp_path / 'p', ['a.png'], size=7, replace=True).size == 7
        note = json.dumps(dict(key='k', done='ODD', errors={}, whole=0)).replace('"ODD"', odd)
        for text in (odd, note):
            (tmp_path / 'unfinished.json').write_text(text)
            (tmp_path / 'unfinished.npy').write_bytes(bytes(9999))
            assert UnfinishedPack(tmp_path, 'k', 3, (4, 4)).done in (0, 1)
            (tmp_path / 'pack.json').write_text(text)
            with pytest.raises(OctError, match='pack them again'): open_pack(tmp_path)
        (tmp_path / 'threads').write_text(odd)
        assert noted_threads(tmp_path, 2) == 2
    torch.save([1], tmp_path / '00001-0000001.pt')
    assert newest(tmp_path, {}) is None


@pytest.mark.parametrize('engine', ['torch', 'onnx'])
def test_no_number_is_said_to_be_none(engine, tmp_path):
    "Weights with NaN gave a row without probabilities and without a reason"
    import torch
    net = network('resnet10t', size=64)
    with torch.no_grad(): net.head[2].weight[0, 0] = float('nan')
    if engine == 'onnx':
        needs_onnx()
    b = save_bundle(tmp_path / 'b', net, CONFIG, onnx=engine == 'onnx')
    t = OctModel.load(b, engine).predict(list(PIXELS[:2]))
    assert t.abstain.all() and t.why.str.contains('not finite').all()


@pytest.mark.parametrize('error, said', [
    (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 12 bytes"), True),
    (RuntimeError('Failed to allocate memory for requested buffer of size 8'), True),
    (RuntimeError('bad allocation'), True), (MemoryError(), True), (RuntimeError('shapes differ'), False)])
def test_lack_of_memory_is_no_fault_of_the_program(error, said, cli, monkeypatch, plain):
    def fail(*args, **kwargs): raise error
    monkeypatch.setattr('oct_classify.inference.batch.scans_of', fail)
    code, _, err = cli('predict', plain, 'a.png')
    assert (code, 'not enough memory' in err) == ((2, True) if said else (70, False))


def test_lack_of_memory_in_numpy_and_arrow():
    import pyarrow
    with pytest.raises(Exception) as e: np.zeros(2**60, np.uint8)
    assert bundles.is_memory_error(e.value) and bundles.is_memory_error(pyarrow.lib.ArrowMemoryError('full'))


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGPIPE')
@pytest.mark.parametrize('args', ['--help', 'predict {b} {b} 2>&1', 'predict {b} {d}'])
def test_closed_output_is_met_in_silence(args, plain, tmp_path, root):
    "`| head` was told to check its disk space"
    from PIL import Image
    for i in range(3): Image.fromarray(PIXELS[i]).save(tmp_path / f'{i}.png')
    command = f'{sys.executable} -m oct_classify.cli {args.format(b=plain, d=tmp_path)}'
    script = f'{{ {command}; echo $? >{tmp_path}/code; }} | true'
    p = subprocess.run(['bash', '-c', script], capture_output=True, text=True, cwd=root)
    assert ((tmp_path / 'code').read_text(), p.stderr, p.stdout) == ('141\n', '', '')


def test_where_nothing_can_be_mapped_it_is_read(plain, monkeypatch, tmp_path):
    "A file system without mmap was called damage"
    def refuse(*args, **kwargs): raise OSError('No such device (os error 19)')
    from oct_classify.data.scans import scan_table
    from oct_classify.phantoms.phantom import phantom_folder
    from oct_classify.training import pack
    data = phantom_folder(tmp_path / 'data', 1, 0, 0, shape=(64, 64))
    mapped = pack.pack(scan_table(data), data, tmp_path / 'pack', size=64)
    monkeypatch.setattr('oct_classify.training.network.load_file', refuse)
    monkeypatch.setattr(pack.mmap, 'mmap', refuse)
    assert OctModel.load(plain, 'torch', 'cpu').probs(PIXELS).shape == (8, 4)
    read = pack.open_pack(tmp_path / 'pack', mapped.key)
    assert (read.pixels == mapped.pixels).all() and (read.take([0]) == mapped.take([0])).all()


def test_libraries_keep_their_remarks(cli, plain, monkeypatch):
    import logging
    import warnings

    def remark(*args, **kwargs):
        warnings.simplefilter('always')
        warnings.warn('The given NumPy array is not writable', UserWarning, stacklevel=2)
        logging.getLogger('timm.models').warning('Overwriting')
        logging.getLogger('pydicom').error('Odd')
        raise OctError('Enough.')
    monkeypatch.setattr('oct_classify.inference.batch.scans_of', remark)
    assert cli('predict', plain, 'a.png')[2] == 'oct-classify: Enough.\n'


@pytest.mark.slow
def test_a_class_may_be_called_anything(tmp_path, cli, no_onnx):
    "A brace in the name of a class ended with code 70 after the training"
    from oct_classify.phantoms.phantom import phantom_folder
    names = dict(zip(CLASSES, ('A{B}{0[', '%S$X_^$', '<B>"Q\'&', 'NEW\nLINE😀' if os.name != 'nt' else 'E😀')))
    data = phantom_folder(tmp_path / 'data', 6, 1, 3, shape=(124, 128))
    for p in [p for p in data.rglob('*') if p.name in names]: p.rename(p.with_name(names[p.name]))
    code, _, said = cli('run', data, '--out', tmp_path / 'o', '--arch', 'resnet10t', '--size', 64, '--weights', 'none',
                        '--epochs', 1, '--classes', ','.join(names.values()))
    assert code == 0, said
    assert '<B>' not in (tmp_path / 'o/report.html').read_text(encoding='utf-8')
    for args in (['predict', tmp_path / 'o/bundle', data / 'test', '--out', tmp_path / 'p.csv'],
                 ['evaluate', tmp_path / 'o/bundle', data, '--out', tmp_path / 'e', '--resamples', 100],
                 ['explain', tmp_path / 'o/bundle', next((data / 'test').rglob('*.jpeg')), '--out', tmp_path / 'x']):
        code, _, said = cli(*args)
        assert code == 0, said


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    import torch
    from safetensors.torch import save_file
    from oct_classify.training.network import create, pretrained
    state = create('resnet10t', (64, 64)).state_dict()
    state['conv1.0.weight'] = torch.full_like(state['conv1.0.weight'], float('nan'))
    save_file(state, tmp_path / 'w.safetensors')
    with pytest.raises(OctError, match='not finite'): pretrained('resnet10t', 4, 64, tmp_path / 'w.safetensors')
