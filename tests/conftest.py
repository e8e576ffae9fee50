import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def real():
    "The folder of real scans, or a skip by name"
    if not os.environ.get('OCT_DATA'): pytest.skip('OCT_DATA names no folder of real scans')
    return Path(os.environ['OCT_DATA']).resolve()


@pytest.fixture(scope='session')
def offline():
    from oct_classify.network import FALLBACK, offline_file
    if not offline_file(FALLBACK): pytest.skip("the extra 'offline' is not installed")
    return FALLBACK


@pytest.fixture
def cli(capfd):
    "Run a command in this process: exit code, standard output, standard error"
    from oct_classify.cli import main

    def call(*argv):
        code = main([str(a) for a in argv])
        return code, *capfd.readouterr()
    return call
