"""The front page's pictures of a heat map and of a report, from what `oct-classify demo` leaves.

    .venv/bin/python .ci/pictures.py oct-demo       (needs Chromium)
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from oct_classify.evaluation.heatmaps import explain
from oct_classify.inference.model import OctModel

IMAGES = Path(__file__).resolve().parent.parent / 'nbs' / 'images'
QUIET = '--headless --no-sandbox --disable-gpu --disable-sync --no-first-run --hide-scrollbars'.split()


def heat_map(demo):
    "One scan with new vessels, and where the model looked"
    scan = sorted((demo / 'phantoms/test/CNV').iterdir())[4]
    explain(OctModel.load(demo / 'bundle', engine='torch'), scan).savefig(IMAGES / 'heatmap.png', dpi=90)


def report(demo):
    "The first screen of the report"
    chromium = shutil.which('chromium') or shutil.which('google-chrome') or sys.exit('Chromium is needed.')
    with tempfile.TemporaryDirectory() as d:
        shot = [f'--user-data-dir={d}', '--window-size=1000,760', f'--screenshot={IMAGES / "report.png"}']
        subprocess.run([chromium, *QUIET, *shot, (demo / 'report.html').resolve().as_uri()], check=True)


if __name__ == '__main__':
    heat_map(Path(sys.argv[1]))
    report(Path(sys.argv[1]))
