"A retina is as large in the prepared pixels however its frame was cut or stored, if the depth of a row can be known"
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oct_classify.core import OctError
from oct_classify.data.prepare import FULL, ROW_UM, find_retina, placed, prepare
from oct_classify.inference.bundle import load_config, write_config
from oct_classify.inference.inputs import scans_of
from oct_classify.phantoms.phantom import Phantom, phantom_folder

GREY = Phantom(3, 'DME', patient=2, border=False).image  # 496 rows of 3.87 µm
LOW = np.asarray(Image.fromarray(GREY).resize((512, 330), Image.BICUBIC))  # the same 1.92 mm in 330 rows
UM = FULL/330


def far(a, b): return np.abs(a.astype(float)-b).mean()


def test_without_its_depth_a_frame_is_taken_for_a_cut_one():
    assert far(prepare(LOW), prepare(GREY)) > 2*far(prepare(LOW, spacing=UM), prepare(GREY))


@pytest.mark.parametrize('kind', ['png', 'tiff', 'jpeg', 'bmp'])
def test_a_picture_says_it_by_its_resolution(kind, tmp_path):
    Image.fromarray(LOW).save(tmp_path/f'a.{kind}', dpi=(2000, round(25400/UM)))
    px, where = placed(tmp_path/f'a.{kind}')
    assert where.spacing == pytest.approx(UM, rel=.01) and far(px, prepare(GREY)) < 6


@pytest.mark.parametrize('dpi', [(72, 72), (300, 300), (1, 1)])
def test_the_resolution_of_paper_says_nothing(dpi, tmp_path):
    Image.fromarray(GREY).save(tmp_path/'a.png', dpi=dpi)
    assert placed(tmp_path/'a.png')[1].spacing == ROW_UM
    assert (prepare(tmp_path/'a.png') == prepare(GREY)).all()


def test_a_volume_says_it(script, tmp_path):
    write = script('tests/test_volumes.py')
    write.vol(tmp_path, 'eye', np.stack([LOW]*2))
    scans = scans_of(tmp_path)
    assert [placed(s.image())[1].spacing for s in scans] == pytest.approx([UM]*2)
    assert placed(str(tmp_path/'eye.vol#1'), spacing=9)[1].spacing == pytest.approx(UM)  # the file knows better


@pytest.mark.parametrize('shared', [True, False])
def test_dicom_says_it(shared, script, tmp_path):
    pydicom = pytest.importorskip('pydicom')
    made = pydicom.dcmread(io.BytesIO(script('bench/fuzz.py').dicom(LOW[None], 'raw')))
    measures = pydicom.Dataset()
    measures.PixelSpacing = [UM/1000, .011]
    if shared:
        group = pydicom.Dataset()
        group.PixelMeasuresSequence = [measures]
        made.SharedFunctionalGroupsSequence = [group]
    else: made.PixelSpacing = measures.PixelSpacing
    made.save_as(tmp_path/'a.dcm')
    assert placed(tmp_path/'a.dcm')[1].spacing == pytest.approx(UM, rel=1e-3)


@pytest.mark.parametrize('value', ['', 'abc', '0', '5'])
def test_nonsense_in_dicom_is_no_depth(value, script, tmp_path):
    pydicom = pytest.importorskip('pydicom')
    made = pydicom.dcmread(io.BytesIO(script('bench/fuzz.py').dicom(GREY[None], 'raw')))
    if value.isdigit(): made.PixelSpacing = [float(value), float(value)]  # 5 mm are no row's depth
    made.save_as(tmp_path/'a.dcm')
    assert placed(tmp_path/'a.dcm')[1].spacing == ROW_UM


def test_the_option_reaches_training_and_prediction(cli, tmp_path, no_onnx):
    data = phantom_folder(tmp_path/'data', 6, 0, 2, shape=(124, 128))
    for f in data.rglob('*.jpeg'): Image.open(f).save(f)  # the tag is lost
    run = ('train', data, '--arch', 'resnet10t', '--size', '64', '--weights', 'none', '--epochs', '1', '--bs', '8')
    assert cli(*run, '--spacing', '200', '--out', tmp_path/'no')[0] == 2
    code, _, err = cli(*run, '--spacing', '10', '--out', tmp_path/'out')
    assert code == 0, err
    bundle = tmp_path/'out/bundle'
    assert load_config(bundle)['spacing'] == 10
    told = {}
    for um in (None, 10, 15.5):
        how = () if um is None else ('--spacing', um)
        assert cli('predict', bundle, data/'test', '--out', tmp_path/f'{um}.csv', '--force', *how)[0] == 0
        told[um] = pd.read_csv(tmp_path/f'{um}.csv').filter(like='p_').to_numpy()
    assert (told[None] == told[10]).all() and (told[15.5] != told[10]).any()
    assert 'give --spacing from' in cli('predict', bundle, data/'test', '--spacing', '0.01')[2]


def test_an_older_bundle_is_refused(cli, tmp_path, no_onnx):
    data = phantom_folder(tmp_path/'data', 4, 0, 1, shape=(124, 128))
    cli('train', data, '--arch', 'resnet10t', '--size', '64', '--weights', 'none', '--epochs', '1', '--bs', '8',
        '--out', tmp_path/'out')
    bundle = tmp_path/'out/bundle'
    for schema, word in ((1, 'train it again'), (99, 'install that version')):
        write_config(bundle, load_config(bundle) | dict(schema=schema), []) if schema == 1 else None
        if schema == 99: (bundle/'config.json').write_text(
            (bundle/'config.json').read_text().replace('"schema": 1', '"schema": 99'))
        code, _, err = cli('predict', bundle, data/'test')
        assert code == 2 and word in err and err.count('\n') == 1
    with pytest.raises(OctError): load_config(bundle)


def test_the_retina_is_found_at_the_same_place_in_a_cut_frame():
    y = int(find_retina(GREY).rows(96).mean()*496)
    whole = find_retina(GREY).rows(96)*496
    for top, bottom in ((0, y+40), (y-180, 496), (y-150, y+60)):
        part = GREY[max(0, top):bottom]
        found = find_retina(part)
        assert not found.doubt and np.abs(found.rows(96)*len(part)+max(0, top)-whole).mean() < 3
