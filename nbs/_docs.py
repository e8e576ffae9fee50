"""What the pages show of the library beyond what nbdev does; nbdev-docs calls `mend` on each cell (pyproject.toml).

nbdev runs the cells of a notebook as `__main__`, where a dataclass has lost the comments of its fields, and links
whatever bears the name of a function.
"""
import re
from dataclasses import is_dataclass
from importlib import import_module

from fastcore.docments import DocmentText, docments
from nbdev.doclinks import NbdevLookup

# Folders, columns, views, traits and arguments that bear the name of a function of another page.
WORDS = 'blank contrast doubt frames grain patient score share speckle spread target train uniform whole'.split()
LINK = re.compile(rf'\[(`(?:{"|".join(WORDS)})`)\]\(https:[^)]*\)')
NESTED = re.compile(r'\[([^][]*)\[(`[^`]+`)\]\(https:[^)]*\)(?=[^][]*\]\()')
SIGNATURE = re.compile(r'```python\ndef (\w+)\(.*?\n```', re.S)


def with_comments(o):
    "The signature of a dataclass with the comments of its fields, those of the classes it builds on too"
    shown = DocmentText(o, docstring=False)
    for name,comment in ((k, v) for base in filter(is_dataclass, o.__mro__[1:]) for k, v in docments(base).items()):
        shown.dm[name].docment = shown.dm[name].docment or comment
    return f'```python\n{shown}\n```'


def signature(found):
    "A signature in a page as it is written: `x=None`, and not `x:NoneType=None`"
    place,name = NbdevLookup()[found[1]],found[1]
    o = getattr(import_module(place[1].removesuffix('.py').replace('/', '.')), name, None) if place else None
    text = with_comments(o) if is_dataclass(o) else found[0]
    text = re.sub(r'\b(?:__main__|oct_classify[\w.]*)\.', '', text.replace(':NoneType=None', '=None'))
    return re.sub(r':(\w+)=<factory>', r':\1=\1()', text)


def inner_asterisks(found):
    "A docstring, which nbdev sets in italics, with its own asterisks kept"
    return '*' + found[1][1:-1].replace('*', r'\*') + '*'


def unlink(text):
    "Without links that nbdev made of what is no function, or within a link that was there"
    return NESTED.sub(r'[\1\2', LINK.sub(r'\1', text))


def mend(cell):
    "Show signatures as they are written, and link no column to a function"
    if cell.cell_type == 'markdown': cell.source = unlink(cell.source)
    for data in (o.data for o in cell.get('outputs', []) if 'text/markdown' in o.get('data', {})):
        text = SIGNATURE.sub(signature, ''.join(data['text/markdown']))
        text = re.sub(r'(?m)^(\*.+\*)$', inner_asterisks, text)
        data['text/markdown'] = unlink(text)
