"Scans, labels and patients as other people name them and write them down."
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from oct_classify.core import CLASSES, OctError, read_grey, scan_name
from oct_classify.data.audit import examine, remarks
from oct_classify.data.scans import find_scans, kept_table, read_table, scan_source, scan_table
from oct_classify.data.split import check_split, load_split, save_split, split_table, unknown_patients
from oct_classify.evaluation.figures import check_predictions, figures, imaginary
from oct_classify.phantoms.phantom import phantom_folder
from PIL import Image


def folder(root, name=lambda p: p, n=4, **kw):
    "Phantoms of `n` patients a class, each file moved to where `name` says"
    made = phantom_folder(root / 'made', n, 0, 0, shape=(64, 64), **kw)
    for p in sorted((made / 'train').rglob('*.jpeg')):
        to = root / 'data' / name(p.relative_to(made / 'train'))
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(p, to)
    return root / 'data'


@pytest.mark.parametrize(
    'name', ['DRY_AMD', 'WET AMD', 'AMD-2', '2', 'DRÜSE', 'Straße', 'None', 'NA', 'nan', 'GA-1-2', 'ΑΜΔ', 'СЕТЧАТКА']
)
def test_any_name_of_a_class_is_read_everywhere(name, tmp_path):
    nfd = unicodedata.normalize('NFD', name)
    d = folder(tmp_path, lambda p: f'{nfd if p.parts[0] == "CNV" else "NORMAL"}/' + (
        p.name.replace('CNV', nfd, 1) if p.parts[0] == 'CNV' else p.name), classes=('CNV', 'NORMAL'))
    with pytest.raises(OctError, match='Only NORMAL'):
        split_table(scan_table(d), 'patient')
    t = scan_table(d, (f' {name.lower()} ', 'normal'))
    assert len(t) == 16 and t.patient.nunique() == 8 and t.patient.notna().all() and (t.error == '').all()
    s = split_table(t, 'patient')
    assert check_split(s).verified and set(s.label[s.split == 'test']) == set(t.label)
    save_split(s, tmp_path / 'split.csv')
    assert load_split(t, tmp_path / 'split.csv').split.tolist() == s.split.tolist()
    listed = t.assign(label=nfd.lower()).where(t.label != 'NORMAL', t)[['path', 'label']]
    listed.to_csv(d / 'labels.csv', index=False)
    again = find_scans(d / 'labels.csv')
    assert again.label.tolist() == t.label.tolist() and again.patient.tolist() == t.patient.tolist()


def test_copies_keep_their_patient_and_dates_are_none():
    for end in (' (1)', ' - Copy', ' copy', ' - Copy (2)', '_copy', ' - Kopie', '-Copy1', '(2)'):
        assert scan_name(f'a/CNV-12-3{end}.jpeg')[:2] == ('CNV', 12), end
    for odd in ('2019-12-31.png', 'scan-2019-12-31.png', 'IMG_2019-12-31.png', 'CNV-12-3-1.png', 'CNV-12.png'):
        assert scan_name(odd) is None, odd
    assert scan_name('C:\\oct\\CNV-7-2.jpeg').patient == 7


@pytest.mark.parametrize('train,test', [('Training', 'Testing'), ('TRAIN', 'VALIDATION'), ('train ', 'Test')])
def test_side_folders_go_by_many_names(train, test, tmp_path):
    d = folder(tmp_path, lambda p: f'{test if int(p.stem.split("-")[1]) % 2 else train}/{p}')
    t = find_scans(d)
    assert set(t.folder) == {'train', 'val' if test == 'VALIDATION' else 'test'}


def test_folders_below_class_folders_are_read(tmp_path, capfd):
    d = folder(tmp_path, lambda p: f'{p.parts[0]}/patient {p.stem.split("-")[1]}/OD/{p.stem.split("-")[2]}.jpeg')
    t = find_scans(d)
    assert len(t) == 32 and t.label.value_counts().eq(8).all() and capfd.readouterr().err == ''
    two = next((d / 'CNV').iterdir())
    shutil.copytree(two, d / 'CNV/another patient')  # one picture, two folders: no second tree
    assert len(find_scans(d)) == 34
    shutil.copytree(d, d / 'data')
    assert len(find_scans(d)) == 34
    (d / 'AMD/p1').mkdir(parents=True)
    (d / 'AMD/notes.txt').touch()
    shutil.copy(next(two.rglob('*.jpeg')), d / 'AMD/p1/x.jpeg')
    capfd.readouterr()
    assert len(find_scans(d)) == 34
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and '2 files, e.g. AMD/p1/x.jpeg: name its folder with --classes' in said[0]
    with pytest.raises(OctError, match='holds no scan'):
        (d / 'AMD2/deep').mkdir(parents=True)
        find_scans(d, (*CLASSES, 'AMD2'))


ENCODINGS = ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252', 'utf-16-le']


def as_others(t, path, encoding='utf-8', sep=',', windows=False, capitals=False, decimal='.'):
    "Write a table as other programs do"
    if windows:
        t = t.assign(path='D:\\Studie Müller\\' + t.path.str.replace('/', '\\'))
    if capitals:
        t = t.rename(columns=str.upper)
    text = t.to_csv(index=False, sep=sep, decimal=decimal, lineterminator='\r\n')
    path.write_bytes(text.encode(encoding))
    return path


WAYS = [(',', False, True), (';', True, False), ('\t', True, True), (';', False, False), (',', True, True)]


@pytest.mark.parametrize('encoding,way', list(zip(ENCODINGS, WAYS)))
def test_labels_stand_in_a_table_of_any_make(encoding, way, tmp_path):
    d = folder(tmp_path)
    by_name = scan_table(d)
    moved = {p: f'drü/{i:04}.jpeg' for i, p in enumerate(by_name.path.sample(frac=1, random_state=1))}
    (tmp_path / 'new/drü').mkdir(parents=True)
    for old, new in moved.items():
        shutil.copy(d / old, tmp_path / 'new' / new)
    t = by_name.assign(path=by_name.path.map(moved), patient='Frau M. ' + by_name.patient)[['path', 'label', 'patient']]
    file = as_others(t.assign(label=t.label.str.lower()), tmp_path / 'new/t.csv', encoding, *way)
    got = scan_table(file)
    back = {new: old for old, new in moved.items()}
    got['was'] = got.path.map(back)
    both = got.merge(by_name, left_on='was', right_on='path', suffixes=('', '_by_name'))
    assert len(both) == len(by_name) and (both.label == both.label_by_name).all()
    assert (both.sha256 == both.sha256_by_name).all() and (got.error == '').all()
    assert (both.patient == 'Frau M. ' + both.patient_by_name).all()
    assert check_split(split_table(got, 'patient')).verified


def test_a_table_names_its_columns_its_root_its_sides(tmp_path, capfd):
    d = folder(tmp_path, classes=('CNV', 'NORMAL'))
    t = scan_table(d)
    t = t.assign(Datei=t.path, Diagnose=t.label.replace('CNV', 'amd'), split='Training', Patient_ID=t.patient)
    t.loc[::4, 'split'] = 'testing'
    t.loc[1, 'split'] = 'dropped'
    t[['Datei', 'Diagnose', 'split', 'Patient_ID']].to_parquet(tmp_path / 't.parquet')
    columns = 'path=datei, label=Diagnose,patient=Patient_ID'
    s = scan_source(tmp_path / 't.parquet', d, columns)
    got = kept_table(s, tmp_path / 'kept.parquet')
    assert s.classes() == ('AMD', 'NORMAL') and len(got) == 15 and (got.error == '').all()
    assert (got.folder == 'test').sum() == 4 and (got.folder == 'train').sum() == 11
    assert 'says dropped: 1 scan' in capfd.readouterr().err
    other = t.assign(Patient_ID='one')
    other[['Datei', 'Diagnose', 'split', 'Patient_ID']].to_parquet(tmp_path / 't.parquet')
    again = kept_table(scan_source(tmp_path / 't.parquet', d, columns), tmp_path / 'kept.parquet')
    assert set(again.patient) == {'one'}  # patients are those of today's table, although no file was read again
    assert len(find_scans(s, ('AMD',))) == 7
    with pytest.raises(OctError, match="'AMD', 'NORMAL': name them"):
        find_scans(s, CLASSES[:2])


def test_tables_that_cannot_be_meant_are_refused(tmp_path, capfd):
    d = folder(tmp_path, classes=('CNV', 'NORMAL'))
    first, second, *_ = find_scans(d).path
    outside = tmp_path / 'outside.jpeg'
    shutil.copy(d / first, outside)
    (d / 'link.jpeg').symlink_to(outside)
    faults = {
        f'path,label\n{first},CNV\n../outside.jpeg,CNV\n': 'lies outside',
        f'path,label\n{first},CNV\nlink.jpeg,CNV\n': 'lies outside',
        f'path,label\n{first},CNV\n{first},DME\n': f'two different things about {first}',
        f'path,label\n{first},CNV\n,\n,DME\n': 'lacks a path or a label in row 2',
        f'path,label\n{first},CNV\n{second},\n': 'lacks a path or a label in row 2',
        'path,label\nnowhere.jpeg,CNV\n': 'No file that',
        f'path,diagnosis\n{first},CNV\n': 'lacks the column label: it has path, diagnosis',
        f'path,Path,label\n{first},{first},CNV\n': 'has the column path twice',
        f'path,label,split\n{first},CNV,tset\n': "says 'tset' of",
        'path,label\n': 'no rows',
    }
    for text, why in faults.items():
        (d / 't.csv').write_text(text)
        with pytest.raises(OctError, match=why):
            find_scans(d / 't.csv')
    (d / 't.csv').write_text(f'path,label\n{first},CNV\n{first},CNV\ngone.jpeg,NORMAL\n{outside},NORMAL\n')
    t = scan_table(d / 't.csv')
    assert 'names 1 scan again' in capfd.readouterr().err
    assert t.error.eq('There is no such file.').sum() == 2 and t.error.eq('').sum() == 1


@pytest.mark.parametrize('make', ['stem', 'name', 'path', 'elsewhere'])
def test_patients_stand_in_a_table_beside_folders(make, tmp_path, capfd):
    d = folder(tmp_path, lambda p: f'{p.parts[0]}/{p.stem.replace("-", "").lower()}x.jpeg')
    bare = scan_table(d)
    assert unknown_patients(bare).startswith('The patients of 32 scans are unknown')
    who = bare.path.str[-7:-6].radd('id ')
    key = dict(stem=bare.path.str.extract(r'(\w+)\.jpeg')[0], name=bare.path.str.rpartition('/')[2], path=bare.path)
    key['elsewhere'] = 'E:\\oct\\' + bare.path.str.replace('/', '\\')
    t = pd.DataFrame(dict(file=key[make], subject=who))
    t[1:].to_csv(d / 'p.csv', index=False)
    s = scan_source(d, patients=d / 'p.csv', columns='patient=subject')
    got = scan_table(s)
    assert got.patient[1:].tolist() == who[1:].tolist() and got.patient.isna().sum() == 1
    assert f'p.csv does not name 1 scan, e.g. {bare.path[0]}.' in capfd.readouterr().err
    t.assign(file=t.file.iloc[0]).to_csv(d / 'p.csv', index=False)
    if t.subject.nunique() > 1:
        with pytest.raises(OctError, match='two patients'):
            scan_source(d, patients=d / 'p.csv', columns='patient=subject')


def test_a_split_file_tells_patients_that_names_do_not(tmp_path):
    d = folder(tmp_path, lambda p: f'{p.parts[0]}/{p.stem.replace("-", "")}x.jpeg', classes=('CNV', 'NORMAL'))
    t = scan_table(d)
    who = np.arange(len(t)) // 2
    side = np.where(who % 4 == 0, 'Testing', 'training')
    sides = pd.DataFrame(dict(path='C:\\x\\data\\' + t.path.str.replace('/', '\\'), split=side, patient=who))
    sides.to_csv(tmp_path / 's.csv', index=False)
    s = load_split(t, tmp_path / 's.csv')
    assert check_split(s).verified and (s.split == 'test').tolist() == (side == 'Testing').tolist()
    sides.assign(patient=7).to_csv(tmp_path / 's.csv', index=False)
    with pytest.raises(OctError, match='on two sides'):
        load_split(t, tmp_path / 's.csv')


HOW = [dict(), dict(sep=';', decimal=','), dict(windows=True), dict(capitals=True), dict(sep='\t')]


@pytest.mark.parametrize('encoding,how', list(zip(ENCODINGS, HOW)))
def test_predictions_as_others_write_them(encoding, how, tmp_path):
    made = imaginary(20, 4.0, seed=3)
    made['path'] = 'prüfung/' + made.label + '-' + made.patient.astype(str) + '-' + made.index.astype(str) + '.jpeg'
    made = made.drop(columns='patient')
    got = check_predictions(read_table(as_others(made, tmp_path / 'p.csv', encoding, **how), '', ('path', 'label')))
    want = check_predictions(made)
    assert figures(got, 100) == figures(want, 100) and got.patient.nunique() == 20


def test_rounded_probabilities_and_a_class_called_none(tmp_path):
    made = imaginary(40, 3.0, seed=4).rename(columns=dict(p_DRUSEN='p_NA', p_NORMAL='p_None'))
    made['label'] = made.label.replace(dict(DRUSEN='NA', NORMAL='None'))
    want = check_predictions(made)
    for digits in (6, 3, 2, 1):
        made.round(digits).to_csv(tmp_path / 'p.csv', index=False)
        got = check_predictions(read_table(tmp_path / 'p.csv'))
        p = got.filter(like='p_')
        assert np.allclose(p.sum(axis=1), 1, atol=1e-2) and got.label.tolist() == made.label.tolist()
        assert (p - want.filter(like='p_')).abs().max().max() < 1.5 * 10.0**-digits
    made.round(2).assign(p_CNV=0.5).to_csv(tmp_path / 'p.csv', index=False)
    with pytest.raises(OctError, match='sum to 1'):
        check_predictions(read_table(tmp_path / 'p.csv'))


def test_audit_warns_of_greys_that_fill_a_sliver(tmp_path):
    d = folder(tmp_path)
    assert remarks(examine(d, tmp_path)[0]) == []
    for p in (d / 'DME').iterdir():
        Image.fromarray(read_grey(p) // 16).save(p.with_suffix('.png'))
        p.unlink()
    said = [str(o) for o in remarks(examine(d, tmp_path)[0])]
    assert len(said) == 1 and 'Half of the DME scans use' in said[0]


def test_a_list_of_paths_as_others_write_it(tmp_path):
    "Backslashes, UTF-16, a Windows code page and letters in two pieces: `predict` found none of these files"
    from unicodedata import normalize
    from oct_classify.inference.inputs import scans_of

    (tmp_path / 'scans').mkdir()
    for name in ('a.png', 'Müller.png'):
        Image.new('L', (40, 40)).save(tmp_path / 'scans' / name)
    for text, code in (
        (r'path\nscans\a.png', 'utf-8'),
        (r'path\nscans\Müller.png', 'cp1252'),
        ('path\nscans/Müller.png', 'utf-16'),
        (normalize('NFD', 'path\nscans/Müller.png'), 'utf-8'),
    ):
        (tmp_path / 'list.csv').write_bytes(text.replace(r'\n', '\n').encode(code))
        (scan,) = scans_of(tmp_path / 'list.csv')
        scan.image()
