"A Kaggle-shaped copy of real scans with planted faults: the audit names every one, and nothing else."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oct_classify.core import CLASSES, patient, read_grey
from oct_classify.data.scans import load_table
from oct_classify.data.split import check_split, split_table

pytestmark = pytest.mark.xdist_group('audit')  # one process for all: what the fixtures make is made once


def resized(g, w, h): return np.asarray(Image.fromarray(g).resize((w, h), Image.BICUBIC))
def clipped(g): return np.clip(g, 0, 255).astype(np.uint8)


KINDS = {
    're-encoded': lambda g, r: g,  # and saved at a low quality
    'resized': lambda g, r: resized(g, *(int(o*r.uniform(.5, 1.4)) for o in g.shape[::-1])),
    'shifted': lambda g, r: np.roll(g, r.integers(-8, 9, 2), (0, 1)),
    'brightness': lambda g, r: clipped(g*r.uniform(.6, 1.35)+r.uniform(0, 12)),
    'cropped': lambda g, r: g[(k := r.integers(2, 9)):-k, k:-k],
    'mirrored or turned': lambda g, r: (g[:,::-1], g[::-1], g[::-1,::-1])[r.integers(3)],
}


class Folder:
    "Plants faults and keeps the books"

    def __init__(self, root, seed=0):
        self.root, self.rng, self.next, self.used = root, np.random.default_rng(seed), 90_000_000, set()
        self.exact, self.near, self.conflict, self.leak, self.corrupt = {}, {}, {}, set(), set()

    def pick(self, folder, label=None):
        "A scan that was not used for anything yet, of a patient that was not either"
        files = sorted(
            p
            for p in (self.root / folder).rglob('*.jpeg')
            if patient(p) < 90_000_000 and patient(p) not in self.used and label in (None, p.parent.name)
        )
        p = files[self.rng.integers(len(files))]
        self.used.add(patient(p))
        return p

    def name(self, folder, label, ext='jpeg'):
        self.next += 1
        return self.root / folder / label / f'{label}-{self.next}-1.{ext}'

    def rel(self, p):
        return p.relative_to(self.root.parent).as_posix()

    def add(self, book, source, target, kind=None):
        if kind is None:
            shutil.copy(source, target)
        else:
            Image.fromarray(np.ascontiguousarray(KINDS[kind](read_grey(source), self.rng))).save(
                target, quality=35 if kind == 're-encoded' else 85
            )
        book[self.rel(target)] = self.rel(source)


@pytest.fixture(scope='module')
def planted(real, tmp_path_factory):
    root = tmp_path_factory.mktemp('kaggle') / 'OCT2017 '
    shutil.copytree(real, root)
    f = Folder(root)
    several = [
        p for p in sorted((root / 'train').rglob('*-2.jpeg')) if p.with_name(p.name.replace('-2.', '-1.')).exists()
    ]
    for p in f.rng.permutation(several)[:20]:  # patients on both sides: one of their scans moves to test
        p.rename(root / 'test' / p.parent.name / p.name)
        f.leak.add(str(patient(p)))
        f.used.add(patient(p))
    assert len(f.leak) == 20
    for i in range(30):
        p = f.pick(('train', 'test')[i % 2])
        f.add(f.exact, p, f.name(('train', 'val')[i // 2 % 2], p.parent.name))
    for kind in KINDS:
        for i in range(10):
            p = f.pick(('train', 'test')[i < 4])
            f.add(
                f.near,
                p,
                f.name(
                    ('train', 'val')[i % 2], p.parent.name, 'png' if i % 3 == 0 and kind != 're-encoded' else 'jpeg'
                ),
                kind,
            )
    for i in range(10):
        p = f.pick('train')
        f.add(
            f.conflict,
            p,
            f.name('train', CLASSES[(CLASSES.index(p.parent.name) + 1) % 4]),
            None if i < 5 else 'brightness',
        )
    for k, data in enumerate((b'', b'not an image', b'%PDF-1.4', f.pick('train').read_bytes()[:3000], bytes(5000))):
        p = f.name('train', CLASSES[k % 4])
        p.write_bytes(data)
        f.corrupt.add(f.rel(p))
    return f


@pytest.fixture(scope='module')
def audited(planted, tmp_path_factory):
    from oct_classify.cli import main

    out = tmp_path_factory.mktemp('audit')
    code = main(['audit', str(planted.root.parent), '--out', str(out), '--strict', '--quiet'])
    return (
        code,
        out,
        json.loads((out / 'audit.json').read_text()),
        load_table(out / 'scans.parquet').set_index('path'),
        load_table(out / 'duplicates.parquet'),
    )


def test_all_copies_are_found_and_no_other(planted, audited):
    *_, table, pairs = audited
    like = {p: table.duplicate_of[p] or p for p in table.index}
    both = planted.exact | planted.near | planted.conflict
    assert [(a, b) for a, b in both.items() if like[a] != like[b]] == []
    assert len(pairs) == len(both) == 100
    kinds = {frozenset(o): k for *o, k in pairs[['path', 'twin', 'kind']].values.tolist()}
    assert all(kinds[frozenset(o)] == 'exact' for o in planted.exact.items())
    assert all(kinds[frozenset(o)] == 'near' for o in planted.near.items())


def test_conflicts_leaks_and_corrupt_files_are_found(planted, audited):
    _, _, found, table, _ = audited
    assert found['conflicts'] == 10 and set(planted.conflict) <= set(
        table.index[table['flags'].str.contains('conflict')]
    )
    assert set(table.index[table.error != '']) == planted.corrupt and found['unusable'] == 5
    leaking = table[(table.folder == 'test') & table.patient.isin(planted.leak)]
    assert len(leaking) == 20 and leaking['flags'].str.contains('leak').all()
    touched = {p for p in table.index[table.folder == 'test'] if 'leak' in table['flags'][p]}
    by_copy = {
        table.patient[b] for a, b in (planted.exact | planted.near).items() if '/test/' in b and '/test/' not in a
    }
    assert {table.patient[p] for p in touched} == planted.leak | by_copy and found['test_scans_touched'] == len(touched)


def test_strict_and_report(audited):
    code, out, found, *_ = audited
    html = (out/'audit.html').read_text(encoding='utf-8')
    assert code == 1 and len(found['bias']) == 2 and html.count('class="warn"') == 2 and len(found['doubts']) == 1
    assert '<script' not in html and 'src="http' not in html and html.count('data:image/png') >= 8


def test_clean_split_knows_nothing_of_the_test(planted, audited):
    table = audited[3].reset_index()
    df = split_table(table)
    assert 'no file or duplicate of one' in str(check_split(df))
    side = df.set_index('path').split
    apart = {
        ('train', 'test'),
        ('test', 'train'),
        ('valid', 'test'),
        ('test', 'valid'),
        ('train', 'valid'),
        ('valid', 'train'),
    }
    assert [
        o for o in (planted.exact | planted.near | planted.conflict).items() if (side[o[0]], side[o[1]]) in apart
    ] == []
    assert (
        df[df.patient.isin(planted.leak)]
        .groupby('patient')
        .split.apply(set)
        .apply(lambda s: s <= {'test', 'dropped'})
        .all()
    )
    torn = df[df.path.isin([*planted.conflict, *planted.conflict.values()])]
    assert (torn.split == 'dropped').all()


def test_untouched_scans_have_no_copy(real, tmp_path):
    from oct_classify.data.audit import bias, examine, remarks
    table, pairs = examine(real, tmp_path)
    assert len(table) == 700 and len(pairs) == 0 and bias(table) == remarks(table) == []


def test_a_picture_kept_many_times_is_one_picture(tmp_path):
    """Sixty qualities of one picture, once under another class and once in test: one conflict, sixty files, one link
    fewer"""
    from oct_classify.data.audit import conflicts, examine, findings
    from oct_classify.phantoms.phantom import phantom_folder

    d = phantom_folder(tmp_path / 'eyes', 3, 0, 2, shape=(248, 256))
    g = read_grey(d / 'train/CNV/CNV-1000-1.jpeg')
    for q in range(40, 98):
        Image.fromarray(g).save(d / f'train/CNV/CNV-{5000 + q}-1.jpeg', quality=q)
    Image.fromarray(g).save(d / 'train/DME/DME-6000-1.png')
    table, pairs = examine(d, tmp_path)
    f = findings(table, pairs, pd.DataFrame())
    assert f['near'] + f['exact'] == len(pairs) == 59 and f['conflicts'] == 1 and len(conflicts(table)) == 60
    assert table['flags'].str.contains('conflict').sum() == 60 and f['bias'] == [] and len(f['doubts']) == 1


@pytest.mark.parametrize('side', ['train', 'test'])
def test_unreadable_files_leak_nothing(tmp_path, side):
    from oct_classify.data.audit import bias, examine
    from oct_classify.phantoms.phantom import phantom_folder
    d = phantom_folder(tmp_path/'eyes', 2, 0, 2, shape=(124, 128))
    other = next((d/('test' if side == 'train' else 'train')/'CNV').iterdir())
    (d/side/'CNV'/other.name.replace('-1.', '-9.')).write_bytes(b'')
    assert bias(examine(d, tmp_path)[0]) == []


def test_bare_class_folders_beside_a_test_folder(tmp_path, cli):
    from oct_classify.phantoms.phantom import phantom_folder
    d = phantom_folder(tmp_path/'eyes', 2, 0, 2, shape=(124, 128))
    for c in CLASSES: (d/'train'/c).rename(d/c)
    shutil.copy(next((d/'CNV').iterdir()), d/'test/CNV/CNV-77-1.jpeg')
    code, _, err = cli('audit', d, '--strict', '--out', tmp_path/'out')
    assert code == 1 and 'shares 1 picture with no folder' in err


def test_graphs_have_32_bit_indices(monkeypatch, tmp_path):
    """SciPy before 1.17.1, which Colab has, takes no others: near duplicates ended `audit` and `run` with a fault of
    the program"""
    from oct_classify.data import duplicates
    from oct_classify.cli import main
    from oct_classify.phantoms.phantom import phantom_folder

    def checked(routine):
        def call(graph, *args, **kwargs):
            assert {a.dtype.name for a in (graph.tocsr().indices, *graph.tocoo().coords)} == {'int32'}
            called.add(routine.__name__)
            return routine(graph, *args, **kwargs)

        return call

    called = set()
    for name in ('connected_components', 'minimum_spanning_tree'):
        monkeypatch.setattr(duplicates, name, checked(getattr(duplicates, name)))
    scan = next(phantom_folder(tmp_path / 'data', 4, 0, 1, shape=(124, 128)).glob('train/CNV/*'))
    Image.fromarray(clipped(read_grey(scan) + 4.0)).save(scan.with_name('CNV-99999-1.jpeg'), quality=95)
    assert main(['audit', str(tmp_path / 'data'), '--out', str(tmp_path / 'out')]) == 0
    pairs = load_table(tmp_path / 'out/duplicates.parquet')
    assert list(pairs.kind) == ['near']
    split_table(load_table(tmp_path / 'out/scans.parquet'), 'patient')
    assert called == {'connected_components', 'minimum_spanning_tree'}
