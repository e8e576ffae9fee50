"The steps of bench/gpu.py on a GPU, with a small network and small scans; skipped by name where there is no GPU."
import pytest
import torch

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')]


@pytest.fixture
def measured(script, root, monkeypatch, tmp_path):
    "What a step measured; a step that failed says why"
    monkeypatch.syspath_prepend(root/'bench')
    gpu = script('bench/gpu.py')

    def measure(step):
        got = gpu.in_process(step, True, tmp_path, 300)
        assert 'failed' not in got, got['failed']
        return got
    return measure


@pytest.mark.parametrize('step', ['train', 'train_fp16', 'train_fp32', 'train_compiled', 'fastai', 'fp16_command'])
def test_step_ends_with_a_figure(measured, step): assert 'skipped' not in measured(step)


@pytest.mark.parametrize('step', ['predict', 'killed', 'memory'])
def test_step_passes(measured, step): assert measured(step)['passed']
