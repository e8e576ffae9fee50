"What an import may cost, and what it may pull in."
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from PIL import Image


def loaded(module):
    "Modules that importing `module` in a fresh process loads"
    code = f'import sys, {module}; print(*sorted({{m.partition(".")[0] for m in sys.modules}}))'
    return set(subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.split())


def test_the_package_itself_is_light():
    assert not loaded('oct_classify') & {'numpy', 'pandas', 'torch', 'fastai', 'PIL'}


LIGHT = (
    'core',
    'data.prepare',
    'data.scans',
    'inference.bundle',
    'inference.inputs',
    'inference.formats',
    'inference.ood',
    'inference.model',
    'inference.batch',
    'app',
    'evaluation.figures',
    'cli',
)


@pytest.mark.parametrize('module', (*LIGHT, 'training.network'))
def test_no_fastai_where_none_is_needed(module):
    got = loaded(f'oct_classify.{module}')
    assert 'fastai' not in got
    if module != 'training.network':
        assert not got & {'torch', 'timm'}
    if module.startswith('inference.'):
        assert not got & {'sklearn', 'matplotlib', 'pydicom', 'fsspec', 'ray', 'onnxruntime'}


def test_the_check_sees_fastai(): assert 'fastai' in loaded('oct_classify.training.learner')


def test_an_answer_without_pytorch(tmp_path):
    "A bundle answers in a process where neither PyTorch nor what trains can be imported"
    if not find_spec('onnxruntime'):
        pytest.skip('onnxruntime is not installed')
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.core import CLASSES
    from oct_classify.training.network import network
    from oct_classify.phantoms.phantom import Phantom
    from oct_classify.inference.model import OctModel

    b = save_bundle(
        tmp_path / 'b',
        network('resnet10t', size=64),
        dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole'),
        onnx=True,
    )
    Image.fromarray(Phantom(1, 'DME').image).save(tmp_path / 'x.png')
    code = """import sys
for m in ('torch', 'torchvision', 'timm', 'fastai', 'sklearn', 'matplotlib', 'captum'): sys.modules[m] = None
from oct_classify.inference.model import OctModel
print(OctModel.load(sys.argv[1]).predict([sys.argv[2]]).p_DME[0])"""
    p = float(
        subprocess.run(
            [sys.executable, '-c', code, b, tmp_path / 'x.png'], check=True, capture_output=True, text=True
        ).stdout
    )
    assert abs(p - OctModel.load(b, engine='torch', device='cpu').predict([tmp_path / 'x.png']).p_DME[0]) < 1e-3


def test_a_network_that_can_not_be_written_as_onnx_still_gets_its_bundle(tmp_path, capsys):
    "A head that decides by what it sees has no fixed graph"
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.core import CLASSES
    from oct_classify.training.network import network
    from oct_classify.phantoms.phantom import Phantom
    from oct_classify.inference.model import OctModel

    net = network('resnet10t', size=64).eval()

    class Odd(type(net.head)):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) > 0 else x[:, :4]

    net.head.__class__ = Odd
    b = save_bundle(
        tmp_path / 'b', net, dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole'), onnx=True
    )
    assert "can't be written as ONNX" in capsys.readouterr().err
    assert not [p for p in b.iterdir() if 'onnx' in p.name]
    assert OctModel.load(b).predict([Phantom(1, 'DME').image]).confidence.notna().all()


def left_behind(tmp_path, first):
    """What a first use of ONNX Runtime leaves below the home folder of whoever runs it, outside of CI, where it
    reports nothing by itself"""
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ('CI', 'GITHUB_ACTIONS', 'TF_BUILD', 'ORT_DISABLE_TELEMETRY', 'XDG_CACHE_HOME')
        and not k.startswith('PYTEST')
    }
    subprocess.run(
        [sys.executable, '-c', f'from oct_classify.inference.onnx import onnx_runtime; {first}.InferenceSession'],
        check=True,
        env=env | dict(HOME=str(tmp_path), https_proxy='http://127.0.0.1:9'),
    )
    return [p.name for p in tmp_path.rglob('*') if p.is_file()]


@pytest.mark.skipif(
    not sys.platform.startswith('linux') or not find_spec('onnxruntime'), reason='needs Linux and onnxruntime'
)
def test_onnx_runtime_keeps_no_number_for_the_machine(tmp_path):
    "That number goes with its reports to its makers; from 1.29 on"
    assert left_behind(tmp_path, 'onnx_runtime()') == []
    if tuple(map(int, version('onnxruntime').split('.')[:2])) >= (1, 29):
        assert left_behind(tmp_path, '__import__("onnxruntime")')  # else this test would see nothing
