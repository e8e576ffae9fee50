"""The pages hang together: sidebar, links, anchors, pictures; and what the package exports says what it is. Every
check is tried on a planted fault."""
import ast
import json
import re
import shutil
import subprocess
from functools import cache

import pytest
import yaml


def pages(root):
    return sorted(
        p for p in (root / 'nbs').rglob('*') if p.suffix in ('.ipynb', '.qmd') and '.ipynb_checkpoints' not in p.parts
    )


def prose(page):
    "The markdown of a page"
    text = page.read_text(encoding='utf-8')
    if page.suffix != '.ipynb': return text
    return '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')


def anchors(page):
    "Identifiers that Quarto gives to the headings of a page, and those that are written out"
    heads = re.findall(r'^#+ +(.*?)$', re.sub(r'```.*?```', '', prose(page), flags=re.S), re.M)
    own = [m[1] for h in heads if (m := re.search(r'\{#([\w-]+)', h))]
    plain = [re.sub(r'[*`]|\[([^\]]*)\]\([^)]*\)|\{.*\}', r'\1', h).strip().lower() for h in heads]
    return {*own, *(re.sub(r'^[^a-z]+', '', re.sub(r'[^\w\s.-]', '', h)).strip().replace(' ', '-') for h in plain)}


def listed(o):
    "Pages in a sidebar"
    if isinstance(o, str): return [o]
    return [p for v in (o.get('contents', []) if isinstance(o, dict) else o) for p in listed(v)]


def broken(root):
    "Everything in the pages that leads nowhere"
    out, heads = [], cache(anchors)
    for page in [*pages(root), root / 'README.md', root / 'CONTRIBUTING.md', root / 'CHANGELOG.md']:
        text = re.sub(r'```.*?```|`[^`\n]*`', '', prose(page), flags=re.S)
        for link in re.findall(r'\]\(<?([^)\s>]+)>?[^)]*\)|(?:src|href)="([^"]+)"', text):
            to, _, at = (link[0] or link[1]).partition('#')
            if re.match(r'https?:|mailto:|data:', to):
                continue
            target = page.parent / to if to else page
            if not target.exists():
                out.append(f'{page.name}: {to}')
            elif at and at not in heads(target):
                out.append(f'{page.name}: {to}#{at}')
    side = listed(yaml.safe_load((root / 'nbs/sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar'])
    here = [p.relative_to(root / 'nbs').as_posix() for p in pages(root)]
    out += (
        [f'sidebar lacks {p}' for p in set(here) - set(side)]
        + [f'sidebar names {p}' for p in set(side) - set(here)]
        + [f'sidebar repeats {p}' for p in set(side) if side.count(p) > 1]
    )
    return out


def badges(root):
    "Links of README into the docs site that no page answers"
    docs = re.findall(
        r'https://[\w.-]+\.github\.io/oct_classify/([\w/-]+)\.html', (root / 'README.md').read_text(encoding='utf-8')
    )
    there = {(p.parent / re.sub(r'^\d\w*?_', '', p.stem)).relative_to(root / 'nbs').as_posix() for p in pages(root)}
    return sorted(set(docs) - there)


def foreign(root):
    "Outputs of notebooks that fetch something from elsewhere, or are widgets that need a script from elsewhere"
    bad = re.compile(
        r'<(?:script|link|img|iframe)[^>]*(?:src|href)=\\?["\']?https?:|application/vnd\.jupyter\.widget|application/javascript'
    )
    return [
        p.name
        for p in pages(root)
        if p.suffix == '.ipynb'
        and bad.search(json.dumps([c.get('outputs') for c in json.loads(p.read_text(encoding='utf-8'))['cells']]))
    ]


def nameless(root):
    "Exported functions and classes without a docstring, and functions with over 40 lines below signature and docstring"
    out = []
    for p in sorted((root / 'oct_classify').rglob('[a-z]*.py')):
        tree = ast.parse(p.read_text(encoding='utf-8'))
        for o in ast.walk(tree):
            if not isinstance(o, ast.FunctionDef):
                continue
            body = o.body[1 if ast.get_docstring(o) else 0 :]
            if body and o.end_lineno - body[0].lineno >= 40:
                out.append(f'{p.name}: {o.name} is longer than 40 lines')
        shown = next(
            (
                ast.literal_eval(o.value)
                for o in tree.body
                if isinstance(o, ast.Assign) and getattr(o.targets[0], 'id', '') == '__all__'
            ),
            [],
        )
        for o in tree.body:
            patched = (
                isinstance(o, ast.FunctionDef)
                and not o.name.startswith('_')
                and any(getattr(d, 'id', '') == 'patch' for d in o.decorator_list)
            )
            if (
                isinstance(o, (ast.FunctionDef, ast.ClassDef))
                and (o.name in shown or patched)
                and not ast.get_docstring(o)
            ):
                out.append(f'{p.name}: {o.name} has no docstring')
    return out


def test_nothing_leads_nowhere(root): assert broken(root) == []
def test_readme_leads_to_pages(root): assert badges(root) == []
def test_no_output_fetches_anything(root): assert foreign(root) == []
def test_what_is_exported_says_what_it_is(root): assert nameless(root) == []


@pytest.fixture
def copy(root, tmp_path):
    for d in ('nbs', 'oct_classify'):
        shutil.copytree(root / d, tmp_path / d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        shutil.copy(root / f, tmp_path)
    return tmp_path


def test_planted_faults_are_found(copy):
    (copy / 'nbs/more.qmd').write_text(
        '[a](gone.ipynb) [b](learn.qmd#no-such-part) ![c](images/none.png) [d](learn.qmd#all-pages)\n', encoding='utf-8'
    )
    assert sorted(broken(copy)) == [
        'more.qmd: gone.ipynb',
        'more.qmd: images/none.png',
        'more.qmd: learn.qmd#no-such-part',
        'sidebar lacks more.qmd',
    ]
    with (copy / 'README.md').open('a', encoding='utf-8') as f:
        f.write('[x](https://oct-classify.github.io/oct_classify/nowhere.html)')
    assert badges(copy) == ['nowhere']
    nb = copy / 'nbs/api/core.ipynb'
    o = json.loads(nb.read_text(encoding='utf-8'))
    next(c for c in o['cells'] if c['cell_type'] == 'code')['outputs'] = [
        dict(
            output_type='display_data',
            data={'text/html': '<script src="https://cdn.example/x.js"></script>'},
            metadata={},
        )
    ]
    nb.write_text(json.dumps(o), encoding='utf-8')
    assert foreign(copy) == ['core.ipynb']
    with (copy / 'oct_classify/core.py').open('a', encoding='utf-8') as f:
        f.write('\n@patch\ndef shown(self): return 1\n\ndef long():\n' + '    x = 1\n' * 41)
    assert nameless(copy) == ['core.py: long is longer than 40 lines', 'core.py: shown has no docstring']


def test_rendered_pages_stay_local(root, tmp_path):
    "The script that Quarto runs after a render, run as Quarto runs it"
    if not (deno := shutil.which('deno')):
        pytest.skip('deno, which Quarto brings, is not installed')
    own = '<script src="site_libs/quarto.js"></script>\n'
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub/a.html').write_text(
        '<script src="https://cdn.example/npm/requirejs@2.3.6/require.min.js" '
        'crossorigin="anonymous"></script>\n<script src="https://cdn.example/jquery.min.js" '
        'data-relocate-top="true"></script>\n'
        '<script type="application/javascript">define(\'jquery\', [],function() {return window.jQuery;})</script>\n'
        + own,
        encoding='utf-8',
    )
    subprocess.run(
        [deno, 'run', '--allow-all', root / 'nbs/local.ts'],
        env={'QUARTO_PROJECT_OUTPUT_DIR': str(tmp_path), 'PATH': '/usr/bin'},
        check=True,
        capture_output=True,
    )
    assert (tmp_path / 'sub/a.html').read_text(encoding='utf-8') == own
