"Scans inside DICOM files, volumes and pictures of several pages are trained on as pictures are, and so are archives"
import importlib.util
import json
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oct_classify.core import CLASSES, OctError, read_grey
from oct_classify.data.scans import find_scans, scan_table
from oct_classify.phantoms.phantom import Phantom, phantom_folder

TINY = ('--arch', 'resnet10t', '--size', '64', '--weights', 'none', '--epochs', '1', '--bs', '8', '--policy', 'patient')


def png(folder, name, frames):
    for i, f in enumerate(frames): Image.fromarray(f).save(folder/f'{name}_{i}.png')
    return [f'{name}_{i}.png' for i in range(len(frames))]


def tiff(folder, name, frames):
    first, *others = map(Image.fromarray, frames)
    first.save(folder/f'{name}.tif', save_all=True, append_images=others)
    return [f'{name}.tif']


def dicom(folder, name, frames):
    (folder/f'{name}.dcm').write_bytes(FUZZ.dicom(frames, 'rle'))
    return [f'{name}.dcm']


def vol(folder, name, frames):
    "Reflectivity that Heidelberg shows as these greys"
    n, h, w = frames.shape
    head = bytearray(2048)
    struct.pack_into('<12s3I3d2I2d', head, 0, b'HSF-OCT-103', w, n, h, .01, .1, 1.91952/h, 8, 8, .01, .01)
    struct.pack_into('<I', head, 100, 256)
    shown = [(np.exp(f/255*8.285-8.3)-2.44e-4).astype('<f4').tobytes() for f in frames]
    (folder/f'{name}.vol').write_bytes(bytes(head)+bytes(64)+b''.join(bytes(256)+f for f in shown))
    return [f'{name}.vol']


@pytest.fixture(scope='module')
def tables(script, tmp_path_factory):
    "The same 72 phantoms of 24 patients as pictures, pages, DICOM and volumes, each with a table of labels"
    global FUZZ
    FUZZ = script('bench/fuzz.py')
    folder, lines = tmp_path_factory.mktemp('volumes'), {}
    for c in CLASSES:
        for p in range(6):
            frames = [Phantom(3, c, patient=p, number=i, shape=(124, 128), border=False).image for i in range(3)]
            for write in (png, tiff, vol, *([dicom] if importlib.util.find_spec('pydicom') else [])):
                (at := folder/write.__name__).mkdir(exist_ok=True)
                paths = write(at, f'{c}{p}', np.stack(frames))
                lines.setdefault(at, []).extend((o, c, f'{c} no {p}') for o in paths)
    for at, rows in lines.items():
        pd.DataFrame(rows, columns=['path', 'label', 'patient']).to_csv(at/'t.csv', index=False)
    return {at.name: at/'t.csv' for at in lines}


def test_frames_are_scans(tables):
    of = {kind: scan_table(table) for kind, table in tables.items()}
    want = of['png']
    assert len(want) == 72 and want.patient.nunique() == 24
    for kind, t in of.items():
        assert (t.error == '').all() and t.patient.tolist() == want.patient.tolist()
        for column in ('label', 'width', 'height', 'dhash'): assert t[column].tolist() == want[column].tolist(), kind
        for a, b in zip(t.path, want.path):
            assert (read_grey(tables[kind].parent/a) == read_grey(tables['png'].parent/b)).all()
        if kind != 'png': assert t.path[1].endswith('#1')


@pytest.mark.parametrize('kind', ['dicom', *(pytest.param(o, marks=pytest.mark.slow) for o in ('vol', 'tiff'))])
def test_training_on_frames_is_training_on_pictures(kind, tables, cli, tmp_path, no_onnx):
    "DICOM files and volumes could be predicted, and not be trained on"
    if kind not in tables: pytest.skip('pydicom is missing')
    answers = {}
    for o in ('png', kind):
        code, _, said = cli('run', tables[o], '--out', tmp_path/o, *TINY)
        assert code == 0 and 'Verified: no patient (24 in all)' in said
        answers[o] = pd.read_parquet(tmp_path/o/'predictions.parquet').filter(like='p_').to_numpy()
    assert (answers['png'] == answers[kind]).all()
    assert '#' in json.dumps(pd.read_csv(tmp_path/kind/'split.csv').path.tolist())


def test_volumes_in_class_folders_and_what_is_none(tables, tmp_path):
    for c in CLASSES:
        (tmp_path/c).mkdir()
        frames = [Phantom(3, c, patient=1, number=i, shape=(64, 64)).image for i in range(2)]
        vol(tmp_path/c, f'{c}-1-1', np.stack(frames))
    (tmp_path/'CNV/notes.txt').write_text('no scan')
    found = find_scans(tmp_path)
    assert len(found) == 9 and found.path[found.label == 'DME'].tolist() == ['DME/DME-1-1.vol#0', 'DME/DME-1-1.vol#1']
    t = scan_table(tmp_path)
    assert (t.error != '').sum() == 1 and set(t.patient[t.error == '']) == {'1'}
    with pytest.raises(OctError, match='no scan with that number'): read_grey(tmp_path/'DME/DME-1-1.vol#2')


def test_the_archive_itself(cli, tmp_path):
    "`audit` and `run` said to unpack it"
    scans = phantom_folder(tmp_path/'scans', 2, 0, 1, shape=(64, 64))
    with zipfile.ZipFile(tmp_path/'scans.zip', 'w') as z:
        for p in scans.rglob('*.jpeg'): z.write(p, p.relative_to(tmp_path))
    for _ in range(2): assert cli('audit', tmp_path/'scans.zip', '--out', tmp_path/'out')[0] == 0
    assert len(find_scans(tmp_path/'out/scans')) == len(find_scans(scans))
    (tmp_path/'scans.zip').write_bytes(b'another')
    code, _, said = cli('audit', tmp_path/'scans.zip', '--out', tmp_path/'out')
    assert code == 2 and 'already there' in said


def test_a_row_may_name_one_slice(tables, tmp_path):
    "A labels table that named `eye.vol#1` was read as one that names slices of this slice"
    for kind in ('vol', 'tiff'):
        t = pd.read_csv(tables[kind])
        pd.concat([t[:1].assign(path=t.path[0]+'#1'), t[1:2]]).to_csv(tables[kind].parent/'one.csv', index=False)
        found = scan_table(tables[kind].parent/'one.csv', CLASSES)
        assert (found.error == '').all()
        assert found.path.tolist() == [f'{t.path[0]}#1', *(f'{t.path[1]}#{i}' for i in range(3))]
