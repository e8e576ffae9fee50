"""What the notebooks' install line changes of the packages that are there.

    PYTHON .ci/colab.py             exit 1 where a package of PYTHON's environment got another version or is gone

Runs the pip lines of nbs/colab.ipynb's install cell, with this checkout in place of GitHub's. The lists before
and after stay in the environment's folder: here.txt, after.txt.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def install_lines(notebook):
    "The pip lines of a notebook's install cell"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    cell = next(s for c in cells if 'here.txt' in (s := ''.join(c['source'])))
    return re.findall(r'^ *[!%](pip .+)$', cell, re.M)


def versions(listing):
    "{name: version} of what `pip list --format=freeze` prints"
    return dict(line.split('==', 1) for line in listing.split())


def changed(before, after):
    "{name: (version before, version after or None)} of the packages that differ"
    return {k: (v, after.get(k)) for k, v in before.items() if after.get(k) != v}


def pip(line): subprocess.run(f'"{sys.executable}" -m {line}', shell=True, check=True, cwd=sys.prefix)


def main():
    for line in install_lines(ROOT/'nbs/colab.ipynb'): pip(re.sub(r'git\+https:[^"]+', ROOT.as_uri(), line))
    pip('pip list --format=freeze > after.txt')
    before, after = (versions(Path(sys.prefix, f).read_text()) for f in ('here.txt', 'after.txt'))
    print(f'{len(before)} packages before, {len(after)} after; new:', *sorted(after.keys()-before.keys()))
    if bad := changed(before, after): sys.exit(f'The install line changed {bad}.')
    print('None of those before was changed.')


if __name__ == '__main__': main()
