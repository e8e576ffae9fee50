"Generated files agree with their sources, and every guard here is tried on a planted fault."
import json
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import distribution, metadata
from pathlib import Path

import pytest
import yaml

MADE = shutil.ignore_patterns(
    '.venv',
    '.git',
    '_proc',
    '_docs',
    '*.egg-info',
    '__pycache__',
    'oct-*',
    'build',
    'dist',
    '.pytest_cache',
    '.gpu',
    'data',
)
CACHES = shutil.ignore_patterns('__pycache__')


@pytest.fixture
def copy(root, tmp_path):
    "A copy of the working tree"
    return shutil.copytree(
        root, tmp_path / 'copy', ignore=lambda folder, names: (MADE if Path(folder) == root else CACHES)(folder, names)
    )


def contents(d):
    return {
        p.relative_to(d).as_posix(): p.read_bytes().replace(b'\r\n', b'\n')
        for top in ('nbs', 'oct_classify', 'README.md')
        for p in [d / top, *(d / top).rglob('*')]
        if p.is_file() and '__pycache__' not in p.parts
    }


def regenerate(d):
    "Clean, export, README, sidebar: the names of the files that changed"
    before = contents(d)
    steps = (
        'from nbdev.clean import nbdev_clean; nbdev_clean()',
        'from nbdev.doclinks import nbdev_export; nbdev_export()',
        'from nbdev.quarto import refresh_quarto_yml, nbdev_sidebar; refresh_quarto_yml(); nbdev_sidebar()',
    )
    for s in steps:
        subprocess.run([sys.executable, '-c', s], cwd=d, check=True, capture_output=True)
    subprocess.run([sys.executable, '.ci/readme.py'], cwd=d, check=True)
    after = contents(d)
    return sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))


def test_generated_files_are_in_sync(copy): assert regenerate(copy) == []


def test_planted_differences_are_found(copy):
    (copy/'oct_classify/core.py').open('a').write('\nx = 1\n')
    (copy/'README.md').open('a').write('more\n')
    nb = copy/'nbs/api/data/split.ipynb'
    o = json.loads(nb.read_text(encoding='utf-8'))
    next(c for c in o['cells'] if c['cell_type'] == 'code')['execution_count'] = 7
    nb.write_text(json.dumps(o), encoding='utf-8')
    assert regenerate(copy) == ['README.md', 'nbs/api/data/split.ipynb', 'oct_classify/core.py']


@pytest.mark.slow
def test_docs_pages_can_be_processed(copy):
    said = subprocess.run(
        [sys.executable, '-c', 'from nbdev.serve import proc_nbs; proc_nbs()'],
        cwd=copy,
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    assert 'imports and other code' not in said  # such a cell would not be run, and what it shows would be missing
    assert list((copy / '_proc').rglob('*split*'))
    cells = [c for p in (copy/'_proc').rglob('*.ipynb') for c in json.loads(p.read_text(encoding='utf-8'))['cells']]
    shown = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for c in cells for o in c.get('outputs', []))
    assert 'def run(' in shown and not re.search('NoneType=None|<factory>|__main__', shown)  # by nbs/_docs.py


COLAB = 'https://colab.research.google.com/github/oct-classify/oct_classify/blob/main'
FRONT = {'nbs/index.ipynb': 'nbs/1_download.ipynb'}  # the front page opens the first lesson


def notebooks(root): return sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def first(pattern, cells):
    "The number of the first code cell that holds this, or None"
    return next(
        (i for i, c in enumerate(cells) if c['cell_type'] == 'code' and re.search(pattern, ''.join(c['source']), re.M)),
        None,
    )


def comes_late(early, late):
    "Is there a cell of the second kind without one of the first kind before it?"
    return late is not None and (early is None or late < early)


def faults(nb: Path, root):
    "What is wrong with a notebook"
    o = json.loads(nb.read_text(encoding='utf-8'))
    cells = o['cells']
    src = '\n'.join(''.join(c['source']) for c in cells)
    out = json.dumps([c.get('outputs') for c in cells])
    rel = nb.relative_to(root).as_posix()
    picture = next((i for i, c in enumerate(cells) if re.search('"image/', json.dumps(c.get('outputs')))), None)
    found = {
        'over 500 KB': nb.stat().st_size > 500_000,
        'stored error': '"output_type": "error"' in out,
        'badge does not point to itself': f'<a href="{COLAB}/{FRONT.get(rel, rel)}">' not in src,
        'machine path in an output': re.search(r'/(home|root|work|Users)/', out),
        'cell without id': any('id' not in c for c in cells),
        'package imported before it is installed': comes_late(
            first('pip install', cells), first(r'^(from|import) oct_classify', cells)
        ),
        'figures without %matplotlib inline, so that Jupyter shows words in their place': comes_late(
            first('^%matplotlib inline', cells), picture
        ),
    }
    return [why for why, bad in found.items() if bad]


def test_notebooks_are_presentable(root): assert {p.name: f for p in notebooks(root) if (f := faults(p, root))} == {}


def test_planted_notebook_faults_are_found(copy):
    nb = copy / 'nbs/api/data/split.ipynb'
    o = json.loads(nb.read_text(encoding='utf-8'))
    o['cells'] = [c for c in o['cells'] if 'pip install' not in ''.join(c['source'])]
    code = next(c for c in o['cells'] if c['cell_type'] == 'code')
    code['outputs'] = [
        dict(output_type='error', ename='E', evalue='/home/me/x', traceback=[]),
        dict(output_type='display_data', data={'image/png': ''}, metadata={}),
    ]
    del code['id']
    text = json.dumps(o).replace('blob/main/nbs/api/data/split.ipynb', 'blob/main/nbs/more.ipynb') + ' ' * 500_000
    nb.write_text(text, encoding='utf-8')
    assert len(faults(nb, copy)) == 7


CHECK = re.compile(r'\b(?:assert\b|ExceptionExpected\(|test_(?:eq|ne|fail|close|stdout|warns)\()')


def long_checks(root):
    "Cells that show a reader of the API pages over ten lines of checks: an example is shorter, the rest is hidden"
    out = []
    for nb in sorted((root/'nbs/api').rglob('*.ipynb')):
        for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            lines = [o for o in ''.join(c['source']).splitlines() if o.strip()]
            seen = c['cell_type'] == 'code' and not any(re.match(r'#\| *(?:hide|export)', o) for o in lines)
            if seen and len(lines) > 10 and CHECK.search('\n'.join(lines)):
                out.append(f'{nb.name}: {c["id"]}')
    return out


def test_checks_on_pages_are_short(root, copy):
    assert long_checks(root) == []
    nb = copy/'nbs/api/data/split.ipynb'
    o = json.loads(nb.read_text(encoding='utf-8'))
    cell = dict(cell_type='code', execution_count=None, metadata={}, outputs=[])
    many = ['test_eq(1, 1)\n']*11
    o['cells'] += [dict(cell, id='seen', source=many), dict(cell, id='unseen', source=['#| hide\n', *many])]
    nb.write_text(json.dumps(o), encoding='utf-8')
    assert long_checks(copy) == ['split.ipynb: seen']


def unpublishable(root):
    "Why nbdev-docs could not finish: it moves the Markdown that Quarto keeps beside each page"
    html = yaml.safe_load((root/'nbs/_quarto.yml').read_text(encoding='utf-8'))['format']['html']
    return [] if html.get('keep-md') is True else ['keep-md: true is missing under html in _quarto.yml']


def test_site_can_be_published(root, copy):
    assert unpublishable(root) == []
    config = copy/'nbs/_quarto.yml'
    config.write_text(re.sub(r'keep-md: true', 'keep-md: false', config.read_text(encoding='utf-8')), encoding='utf-8')
    assert len(unpublishable(copy)) == 1


def test_one_repository_address(root):
    urls = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']
    repo, docs = urls['Repository'], urls['Documentation']
    slug = repo.removeprefix('https://github.com/')
    files = [*notebooks(root), root/'README.md', root/'CITATION.cff', root/'nbs/nbdev.yml']
    text = '\n'.join(p.read_text(encoding='utf-8') for p in files)
    assert set(re.findall(r'github\.com/([\w.-]+/oct_classify)', text)) == {slug}
    assert set(re.findall(r'colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/', text)) == {slug}
    assert set(re.findall(r'https://[\w.-]+\.github\.io/\w+/', text)) == {docs}
    assert f'repository-code: {repo}\n' in (root/'CITATION.cff').read_text(encoding='utf-8')


def test_metadata_comes_from_settings(root):
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    m, d = metadata('oct_classify'), distribution('oct_classify')
    import oct_classify

    assert (m['Version'], m['Summary'], m['Requires-Python']) == (
        oct_classify.__version__,
        ini['DEFAULT']['description'],
        f">={ini['DEFAULT']['min_python']}",
    )
    wanted = {r.strip().replace(' ', '') for r in ini['DEFAULT']['requirements'].split('\n') if r.strip()}
    norm = lambda r: r.replace('_', '-').lower()
    assert {norm(r) for r in d.requires if 'extra' not in r} == {norm(r) for r in wanted}
    assert set(m.get_all('Provides-Extra')) == set(ini['extras']) - set(ini.defaults())


def test_constraints_name_every_requirement(root):
    pins = {
        re.split('==', line)[0].lower().replace('_', '-')
        for line in (root / 'constraints.txt').read_text().splitlines()
        if '==' in line
    }
    need = {re.split(r'[<>=!\[ ;]', r)[0].lower().replace('_', '-') for r in distribution('oct_classify').requires} - {
        'oct-classify'
    }
    assert need - pins == set()


def test_one_version(root):
    import oct_classify

    v = oct_classify.__version__
    assert f'\nversion: {v}\n' in (root / 'CITATION.cff').read_text(encoding='utf-8')
    released = [
        line for line in (root / 'CHANGELOG.md').read_text(encoding='utf-8').splitlines() if re.match(r'## \d', line)
    ]
    assert released[0].startswith(f'## {v}')
