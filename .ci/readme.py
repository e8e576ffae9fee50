"""README.md from nbs/index.ipynb, without Quarto.

    python .ci/readme.py            write README.md
    python .ci/readme.py --check    exit 1 where it differs

Markdown cells stand as they are, code cells become code blocks followed by their text output; links and pictures that
are relative to nbs/ are made relative to the repository, links to notebooks and pages lead to the docs site.
"""
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = re.compile(r'^#\|\s*(hide|hide_input|default_exp|export|eval:\s*false)', re.M)


def text(cell): return ''.join(cell['source']).strip()


def output(cell):
    "The text that a code cell left"
    seen = [o for o in cell['outputs'] if o.get('name') != 'stderr']
    out = [''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in seen]
    return '\n'.join(o.rstrip() for o in out if o.strip())


def block(cell):
    if cell['cell_type'] == 'markdown': return text(cell)
    if cell['cell_type'] != 'code' or HIDDEN.search(text(cell)): return ''
    out = output(cell)
    return f'```python\n{text(cell)}\n```' + (f'\n\n```\n{out}\n```' if out else '')


def page(m, docs):
    "The address that nbdev gives to a notebook or page"
    folder, name, anchor = m[1] or '', re.sub(r'^\d\w*?_', '', m[2]), m[3] or ''
    return f']({docs}{folder}{name}.html{anchor})'


def relink(md, docs):
    md = re.sub(r'\]\(((?:\w+/)+)?(\w+)\.(?:ipynb|qmd)(#[\w-]+)?\)', lambda m: page(m, docs), md)
    return re.sub(r'(\]\(|src=")images/', r'\1nbs/images/', md)


def readme():
    docs = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']['urls']['Documentation']
    cells = json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    head = '<!-- made from nbs/index.ipynb by .ci/readme.py; edit that notebook instead -->\n\n'
    return head + relink('\n\n'.join(b for b in map(block, cells) if b), docs) + '\n'


if __name__ == '__main__':
    new, path = readme(), ROOT/'README.md'
    if '--check' not in sys.argv: path.write_text(new, encoding='utf-8', newline='\n')
    elif path.read_text(encoding='utf-8') != new: sys.exit('README.md differs from nbs/index.ipynb: run make readme.')
