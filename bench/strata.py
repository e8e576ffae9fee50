"""For whom does a recipe work? Out-of-fold predictions of bench/recipes.py by stratum, as a markdown table; no scan
of the test folder is read.

    python bench/strata.py DATA OUT [--folds 5] [--seed 0] [--members 1] [--resamples 2000] [--picture FILE]

OUT is the folder that `python bench/recipes.py DATA --out OUT` has filled. One member is the recipe `fast`, two are
`best`.
"""
import argparse
from pathlib import Path

from recipes import gather, predictions

from oct_classify.core import quiet
from oct_classify.data.scans import scan_table
from oct_classify.evaluation.strata import by_stratum, plot_strata, scan_traits, strata_table

BY = ['width', 'border', 'found', 'contrast', 'spread', 'bow', 'tilt', 'scans']


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('data', type=Path)
    p.add_argument('out', type=Path)
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--members', type=int, default=1)
    p.add_argument('--resamples', type=int, default=2000)
    p.add_argument('--picture', type=Path)
    a = p.parse_args()
    quiet()
    t = scan_table(a.data)
    t = t[(t.folder != 'test') & (t.error == '')].reset_index(drop=True)
    if (z := gather(a.out, t, a, a.members, a.seed)) is None:
        raise SystemExit(f'A fold is missing in {a.out}: run bench/recipes.py first.')
    table = by_stratum(scan_traits(predictions(t, z), a.data), BY, a.resamples)
    s = strata_table(table)
    print('\n'.join('| ' + ' | '.join(map(str, r)) + ' |' for r in [s.columns, ['---'] * len(s.columns), *s.values]))
    if a.picture:
        plot_strata(table).savefig(a.picture, dpi=110)


if __name__ == '__main__': main()
