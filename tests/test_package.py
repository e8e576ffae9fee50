"What an import may cost, and what it may pull in."
import subprocess
import sys

import pytest


def loaded(module):
    "Modules that importing `module` in a fresh process loads"
    code = f'import sys, {module}; print(*sorted({{m.partition(".")[0] for m in sys.modules}}))'
    return set(subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout.split())


def test_the_package_itself_is_light():
    assert not loaded('oct_classify') & {'numpy', 'pandas', 'torch', 'fastai', 'PIL'}


@pytest.mark.parametrize('room', ['core', 'prepare', 'network', 'predict', 'evaluate', 'cli'])
def test_no_fastai_where_none_is_needed(room):
    got = loaded(f'oct_classify.{room}')
    assert 'fastai' not in got
    if room in ('core', 'prepare', 'evaluate', 'cli'): assert 'torch' not in got


def test_the_check_sees_fastai(): assert 'fastai' in loaded('oct_classify.train')
