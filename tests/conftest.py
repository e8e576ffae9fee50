import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONG = (
    'test_demo_learns', 'test_what_a_leak_is_worth', 'test_killed_at_twenty_random_moments', 'test_two_processes',
    'test_worker_and_driver_killed', 'test_docs_pages_can_be_processed')


def pytest_collection_modifyitems(items):
    "The longest first, so that no process waits for another at the end"
    items.sort(key=lambda o: o.originalname not in LONG)


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def script():
    "Loads a script of the repository, such as bench/maps.py, as a module"
    def load(path):
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT/path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return load


@pytest.fixture(scope='session')
def real():
    "The folder of real scans, or a skip by name"
    if not os.environ.get('OCT_DATA'): pytest.skip('OCT_DATA names no folder of real scans')
    return Path(os.environ['OCT_DATA']).resolve()


@pytest.fixture(scope='session')
def offline():
    from oct_classify.training.network import FALLBACK, offline_file
    if not offline_file(FALLBACK): pytest.skip("the extra 'offline' is not installed")
    return FALLBACK


@pytest.fixture
def no_onnx(monkeypatch):
    "Bundles for PyTorch alone, which saves the seconds of an export where a test is about something else"
    monkeypatch.setattr('oct_classify.inference.onnx.write_onnx', lambda *a: None)


@pytest.fixture
def cli(capfd):
    "Run a command in this process: exit code, standard output, standard error"
    from oct_classify.cli import main

    def call(*argv):
        code = main([str(a) for a in argv])
        return code, *capfd.readouterr()
    return call
