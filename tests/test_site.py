"""The pages hang together: sidebar, links, anchors, pictures; and what the package exports says what it is. Every
check is tried on a planted fault."""
import ast
import json
import re
import shutil
import subprocess
import tomllib
from functools import cache
from importlib import import_module

import pytest
import yaml
from fastcore.basics import AttrDict

OPTIONS = '''--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync'''.split()


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
    "Pages in a sidebar or a navbar"
    if isinstance(o, str): return [o]
    if isinstance(o, list): return [p for v in o for p in listed(v)]
    inside = [p for k in ('contents', 'menu', 'left', 'right') for p in listed(o.get(k, []))]
    return inside + ([o['href']] if 'href' in o else [])


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
    site = website(root)
    side,bar = listed(site['sidebar']),[p for p in listed(site['navbar']) if '//' not in p]
    here = [p.relative_to(root / 'nbs').as_posix() for p in pages(root)]
    out += (
        [f'sidebar lacks {p}' for p in set(here) - set(side)]
        + [f'sidebar names {p}' for p in set(side) - set(here)]
        + [f'sidebar repeats {p}' for p in set(side) if side.count(p) > 1]
        + [f'navbar names {p}' for p in set(bar) - set(here)]
    )
    return out


def config(root, name): return yaml.safe_load((root / 'nbs' / name).read_text(encoding='utf-8'))


def website(root):
    "What Quarto knows of the site: _quarto.yml and the files that it names, of which the last counts"
    out, main = {}, config(root, '_quarto.yml')
    for o in (main, *(config(root, name) for name in main['metadata-files'])):
        out |= o['website']
    return out


def unsorted(root):
    "What would make the sidebar a long list again: pages of the library not folded away, or without a plain name"
    library = next(o['contents'] for o in website(root)['sidebar']['contents'] if o.get('section') == 'Library')
    stages = [o for o in library if 'section' in o]
    out = [f'{o} is in no stage' for o in library if 'section' not in o]
    out += [f'{s["section"]} is too long' for s in stages if len(s['contents']) > 9]
    out += [f'{p} has no text' for s in stages for p in s['contents'] if not isinstance(p, dict)]
    folded = {p for s in stages for p in listed(s)}
    api = {p for p in listed(website(root)['sidebar']) if p.startswith('api/')}
    return out + [f'{p} is not folded' for p in sorted(api - folded)]


def misread(root):
    "Prose that Quarto shows otherwise than it is meant"
    out = []
    for page in pages(root):
        text = re.sub(r'```+[^`\n]+\n.*?```', '', prose(page), flags=re.S)
        bare = re.findall(r'(?ms)^```\n.*?^```|\n\n {4}(?![-*\d ])', text)
        out += [f'{page.name}: a block of code without a language' for _ in bare]
        for one in re.findall(r'(?:^|\n\n)\[?!\[[^\]]+\]\([^)]*\)[^\n{]*(?=\n\n|$)', text):
            out.append(f'{page.name}: alt text as a caption: {one.strip()[:40]}')
        parts = re.split(r'[|\n]', re.sub(r'`[^`\n]*`', '', text))
        stars = [p for p in parts if len(re.findall(r'\d\*(?=[) ])', p)) > 1]
        out += [f'{page.name}: asterisks set in italics: {p[:40]}' for p in stars]
    return out


def emptied(root):
    "Pages that show real scans where OCT_DATA names some, yet do not say so, or were stored where there were none"
    out = []
    for page in (p for p in pages(root) if p.suffix == '.ipynb'):
        code = [c for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
        src = [''.join(c['source']) for c in code]
        if not any(re.search(r"^real = os\.environ\.get\('OCT_DATA'\)|^if names\.exists", s, re.M) for s in src):
            continue
        if 'OCT_DATA' not in prose(page):
            out.append(f'{page.name} does not say that it needs OCT_DATA')
        for cell, s in zip(code, src):
            shows = re.search(r'^if (?:real|\w+\.exists\(\)):.*\b(?:display|print)\(|if real else None', s, re.M | re.S)
            if shows and '#| hide' not in s and not cell['outputs']:
                out.append(f'{page.name} was stored without real scans: {shows[0][:30]!r}')
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
def test_library_is_folded_by_stage(root): assert unsorted(root) == []
def test_prose_is_shown_as_it_is_meant(root): assert misread(root) == []
def test_pages_keep_what_real_scans_showed(root): assert emptied(root) == []
def test_site_says_what_it_is(root): assert 'OCT' in website(root)['description']


def test_code_fits_its_column(root):
    html = config(root, '_quarto.yml')['format']['html']
    assert (html['grid']['body-width'], html['code-overflow']) == ('920px', 'wrap')


@pytest.fixture
def copy(root, tmp_path):
    for d in ('nbs', 'oct_classify'):
        shutil.copytree(root / d, tmp_path / d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        shutil.copy(root / f, tmp_path)
    return tmp_path


def test_planted_faults_are_found(copy):
    (copy / 'nbs/more.qmd').write_text(
        '[a](gone.ipynb) [b](learn.qmd#no-such-part) ![c](images/none.png) [d](learn.qmd#for-engineers)\n',
        encoding='utf-8',
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


def test_planted_faults_of_form_are_found(copy):
    (copy / 'nbs/more.qmd').write_text(
        'A\n\n![A picture](a.png)\n\n![](b.png)\n\n![Told](c.png){fig-alt=""}\n\n63.3*) or 66.7*)\n\n'
        '| 19* | 63.3* |\n\n    code\n\n```\nplain\n```\n\n```bash\nls *\n```\n\n1. a list\n\n    - in a list\n',
        encoding='utf-8',
    )
    was = misread(copy)
    assert sorted(o.split(': ')[1] for o in was if 'more.qmd' in o) == [
        *['a block of code without a language'] * 2, 'alt text as a caption', 'asterisks set in italics']
    side = copy / 'nbs/sidebar.yml'
    text = side.read_text(encoding='utf-8')
    side.write_text(text.replace('{text: ONNX, href: api/inference/onnx.ipynb}', 'api/inference/onnx.ipynb'))
    assert unsorted(copy) == ['api/inference/onnx.ipynb has no text']
    side.write_text(text.replace('api/core.ipynb', 'gone.ipynb').replace('cite.qmd', 'api/core.ipynb'))
    assert unsorted(copy) == ['api/core.ipynb is not folded']
    (copy / 'nbs/howto.qmd').unlink()
    assert 'navbar names howto.qmd' in broken(copy)


def test_planted_page_without_its_real_scans_is_found(copy):
    page = copy / 'nbs/api/data/audit.ipynb'
    o = json.loads(page.read_text(encoding='utf-8'))
    next(c for c in o['cells'] if 'plot_means(t, real) if real' in ''.join(c['source']))['outputs'] = []
    text = json.dumps(o)
    page.write_text(text, encoding='utf-8')
    assert [o.split(':')[0] for o in emptied(copy)] == ['audit.ipynb was stored without real scans']
    page.write_text(text.replace('`OCT_DATA`', 'it'), encoding='utf-8')
    assert 'audit.ipynb does not say that it needs OCT_DATA' in emptied(copy)


def docs_cell(text, **kwargs):
    "A cell as nbdev hands it over"
    output = AttrDict(data=AttrDict({'text/markdown': text}))
    return AttrDict(cell_type='code', source='', outputs=[output], **kwargs)


def test_signatures_are_shown_as_written(root, monkeypatch):
    lookup = pytest.importorskip('nbdev.doclinks').NbdevLookup()
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    name, = tomllib.loads((root / 'pyproject.toml').read_text(encoding='utf-8'))['tool']['nbdev']['doc_procs']
    assert 'PYTHONPATH: .' in (root / '.github/workflows/deploy.yaml').read_text(encoding='utf-8')  # else not found
    module, function = name.split(':')
    mend = getattr(import_module(module), function)
    cell = docs_cell(
        '### Finding\n\n```python\ndef Finding(\n    kind:str, count:int\n)->None:\n```\n\n*As in FAT* 2019 of '
        '[`contrast`](https://x.y/z.html#contrast)*\n')
    mend(cell)
    shown = cell.outputs[0].data['text/markdown']
    assert re.search(r'kind:str, # \w', shown) and r'*As in FAT\* 2019 of `contrast`*' in shown
    cell = docs_cell('```python\ndef f(\n    a:NoneType=None, b:list=<factory>, c:__main__.C=1\n):\n```\n[`run`](x.y)')
    mend(cell)
    made = '```python\ndef f(\n    a=None, b:list=list(), c:C=1\n):\n```\n[`run`](x.y)'
    assert cell.outputs[0].data['text/markdown'] == made
    prose = AttrDict(cell_type='markdown', source='[see [`f`](https://x.y/f) there](a.ipynb), [`train`](https://x.y/t)')
    mend(prose)
    assert prose.source == '[see `f` there](a.ipynb), `train`'
    recipe = docs_cell('```python\ndef Recipe(\n    epochs:int\n):\n```')
    mend(recipe)
    assert '# of the head at its peak' in recipe.outputs[0].data['text/markdown']  # a field of Options
    from nbs._docs import WORDS

    assert [w for w in WORDS if not lookup[w]] == []  # a word that names no function needs no mending


WIDE = """<!doctype html><iframe style="width:390px;height:800px;border:0" srcdoc='<style>{css}</style>
<body style="margin:0"><main><table class="table"><tr>{cells}</tr></table>
<div class="cell-output"><pre><code>{words}</code></pre></div><pre><code>{words}</code></pre><img width="900" src="">
<div class="doors"><div>one</div><div>two</div><div>three</div></div></main></body>'></iframe><script>
onload = () => document.title = document.querySelector("iframe").contentDocument.documentElement.scrollWidth
</script>"""


def width(chrome, css, tmp_path):
    "How wide a page of wide things is on a phone of 390 pixels"
    page = tmp_path / 'wide.html'
    cells = ''.join(f'<td>column_{i}</td>' for i in range(12))
    page.write_text(WIDE.format(css=css, cells=cells, words='a long line of words ' * 20), encoding='utf-8')
    said = subprocess.run([chrome, *OPTIONS, f'--user-data-dir={tmp_path}/chrome', '--dump-dom', page.as_uri()],
        capture_output=True, text=True, check=True, timeout=60).stdout
    return int(re.search(r'<title>(\d+)</title>', said)[1])


def test_nothing_runs_off_a_phone(root, tmp_path):
    chrome = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not chrome: pytest.skip('chromium is missing')
    assert width(chrome, (root / 'nbs/styles.css').read_text(encoding='utf-8'), tmp_path) == 390
    assert width(chrome, '', tmp_path) > 390


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
