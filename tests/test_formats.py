"Files of devices, archives and programs, as people have them: every slice is a scan, or a sentence says why"
import gzip
import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from oct_classify.core import OctError, read_grey
from oct_classify.inference import formats
from oct_classify.inference.formats import heidelberg_float16, stretched
from oct_classify.inference.inputs import by_volume, scans_of

GREYS = np.random.default_rng(0).integers(0, 255, (3, 48, 64)).astype(np.uint8)


def encoded(kind, frames=GREYS[:1], **kw):
    b, (first, *rest) = io.BytesIO(), [Image.fromarray(o) for o in frames]
    first.save(b, kind, **(dict(save_all=True, append_images=rest) if rest else {}), **kw)
    return b.getvalue()


def answers(at, folder=None):
    "{name without the folder: greys, or the sentence with which it is refused}"
    def one(s):
        try: return read_grey(s.image())
        except OctError as e: return str(e)
    return {s.name.removeprefix(str(folder or at)).lstrip('/\\'): one(s) for s in scans_of(at)}


def boxed(tmp_path, files):
    "The same files in a folder, in a zip, and what both give"
    (folder := tmp_path/'folder').mkdir()
    with zipfile.ZipFile(tmp_path/'box.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for n, data in files.items():
            (folder/n).write_bytes(data)
            z.writestr(n, data)
    got, zipped = answers(folder), answers(tmp_path/'box.zip')
    assert {k: str(v) for k, v in got.items()} == {k: str(v) for k, v in zipped.items()}
    return got


def test_each_page_is_a_scan(tmp_path):
    "A stack saved as one TIFF was answered by its first page alone"
    kinds = {'a.tif': 'tiff', 'b.gif': 'gif', 'c.png': 'png', 'd.webp': 'webp'}
    lossless = {'d.webp': dict(lossless=True)}
    files = {n: encoded(k, GREYS, **lossless.get(n, {})) for n, k in kinds.items()}
    one = {f'one{n}': encoded(k, **lossless.get(n, {})) for n, k in kinds.items()}
    got = boxed(tmp_path, files | one)
    assert sorted(got) == sorted([f'{n}#{i}' for n in kinds for i in range(3)]+list(one))
    for n, a in got.items():
        assert np.abs(a.astype(int)-GREYS[int(n[-1]) if '#' in n else 0]).max() <= 1, n
    back = scans_of(tmp_path/'folder/c.png')[::-1]
    assert [int(np.abs(read_grey(s.image()).astype(int)-g).max()) for s, g in zip(back, GREYS[::-1])] == [0, 0, 0]


def test_a_smaller_copy_in_a_tiff_is_no_scan(tmp_path):
    small = Image.fromarray(GREYS[1]).resize((32, 32))
    small.encoderinfo = dict(tiffinfo={254: 1})
    Image.fromarray(GREYS[0]).save(tmp_path/'a.tif', save_all=True, append_images=[small])
    assert list(answers(tmp_path)) == ['a.tif'] and (answers(tmp_path)['a.tif'] == GREYS[0]).all()


def test_deep_pages_are_read_as_pictures_are(tmp_path):
    "Sixteen bits, perhaps with white as zero, which a copy of a page forgets"
    deep = [Image.fromarray(g.astype(np.uint16)*257) for g in GREYS]
    for white in (0, 1):
        kw = dict(tiffinfo={262: white})
        deep[0].save(tmp_path/'a.tif', save_all=True, append_images=deep[1:], **kw)
        for i, s in enumerate(scans_of(tmp_path/'a.tif')):
            deep[i].save(tmp_path/'one.tif', **kw)
            assert (read_grey(s.image()) == read_grey(tmp_path/'one.tif')).all()
        assert (read_grey(tmp_path/'one.tif') == (GREYS[2] if white else 255-GREYS[2])).all()


def test_a_damaged_page_costs_its_row(tmp_path):
    b = bytearray(encoded('tiff', GREYS, compression='tiff_lzw'))
    with Image.open(io.BytesIO(b)) as im:
        im.seek(1)
        at = im.tag_v2[273][0]
    b[at:at+40] = b'\xff'*40
    (tmp_path/'a.tif').write_bytes(b)
    got = answers(tmp_path)
    assert [isinstance(o, str) for o in got.values()] == [False, True, False]


def test_what_training_reads_is_found(tmp_path):
    "In a folder only the usual endings were found, and the rest passed over in silence"
    pictures = dict(jfif='jpeg', jpe='jpeg', jp2='jpeg2000', pgm='ppm', bmp='bmp', dib='dib')
    files = {f'a.{x}': encoded(k) for x, k in pictures.items()} | {'1.2.840.1': encoded('jpeg'), 'IM1': encoded('png')}
    junk = {'notes.txt': b'Patient 7\n', 'Programs.txt': b'P1 is a name', 'BM.txt': b'BMI;27;0000;0000', 'Thumbs.db':
        b'\xd0\xcf\x11\xe0', 'a.csv': b'path\nx\n', 'empty': b'', 'a.xml': b'<annotation/>', 'a.docx': b'PK\3\4'}
    assert sorted(boxed(tmp_path, files | junk)) == sorted(files)


def dicom(tmp_path, frames=GREYS, **kw):
    "The bytes of a DICOM file of ophthalmic tomography"
    uid = pytest.importorskip('pydicom.uid')
    from pydicom.dataset import Dataset, FileMetaDataset
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = '1.2.840.10008.5.1.4.1.1.77.1.5.4', '1.2.3', 'OPT'
    ds.set_pixel_data(frames if len(frames) > 1 else frames[0], 'MONOCHROME2', frames.dtype.itemsize*8)
    for k, v in kw.items(): setattr(ds, k, v)
    ds.save_as(tmp_path/'x', enforce_file_format=True)
    return (tmp_path/'x').read_bytes()


def bare(tmp_path, implicit=False, **kw):
    "A data set alone, as files were before they had a head"
    from pydicom import dcmread
    dicom(tmp_path, **kw)
    ds = dcmread(tmp_path/'x')
    b = io.BytesIO()
    del ds.file_meta
    ds.save_as(b, implicit_vr=implicit, little_endian=True)
    return b.getvalue()


def test_dicom_is_known_by_its_content(tmp_path):
    "DICOM under its number was passed over, and without a head it was not read at all"
    usual = dicom(tmp_path, GREYS[:1])
    files = {'OPT.1.2.276.0': usual, '1.2.276.0.75': usual, 'IM7': usual, 'a.ima': usual}
    files |= {f'{i}.{x}': bare(tmp_path, bool(i), frames=GREYS[:1]) for i in (0, 1) for x in ('123', 'dcm')}
    index = usual.replace(b'1.2.840.10008.5.1.4.1.1.77.1.5.4', b'1.2.840.10008.1.3.10\0'.ljust(32, b'\0'))
    got = boxed(tmp_path, files | {'DICOMDIR': index, 'INDEX': index})
    assert sorted(got) == sorted(files) and all((a == GREYS[0]).all() for a in got.values())


def test_dicom_margins_and_empty_tables(tmp_path):
    "A margin of 65535 made the tissue black, and a table without entries cost the scan"
    from pydicom.dataset import Dataset
    deep = GREYS.astype(np.uint16)*16
    want = read_grey_of(tmp_path, dicom(tmp_path, deep[..., 9:]))
    deep[..., :9] = 65530
    for kw in (dict(PixelPaddingValue=65530), dict(PixelPaddingValue=65535, PixelPaddingRangeLimit=65000)):
        got = read_grey_of(tmp_path, dicom(tmp_path, deep, **kw))
        assert got[:, :9].max() == 0 and (got[:, 9:] == want).all()
    for kw in (dict(VOILUTSequence=[]), dict(VOILUTSequence=[Dataset()]), dict(WindowWidth='', WindowCenter='')):
        assert (read_grey_of(tmp_path, dicom(tmp_path, **kw)) == GREYS[0]).all()
    assert read_grey_of(tmp_path, dicom(tmp_path, np.full_like(deep, 7), PixelPaddingValue=7)).max() == 0


def read_grey_of(tmp_path, data):
    (tmp_path/'x.dcm').write_bytes(data)
    return read_grey(scans_of(tmp_path/'x.dcm')[0].image())


@pytest.mark.parametrize('kw, word', [
    (dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.77.1.5.7'), 'view from the front'),
    (dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.81.1'), 'view from the front'),
    (dict(ImageType=['DERIVED', 'PRIMARY', 'THICKNESS MAP']), 'view from the front'),
    (dict(ImageType=['ORIGINAL', 'PRIMARY', 'EN_FACE']), 'view from the front'),
    (dict(Modality='MR'), 'modality MR'),
    (dict(Modality='OT', SOPClassUID='1.2.840.10008.5.1.4.1.1.7', ImageType=['DERIVED', 'SECONDARY']), ''),
    (dict(Modality='', ImageType=''), ''),
])
def test_dicom_that_is_no_slice_says_so(tmp_path, kw, word):
    (tmp_path/'x.dcm').write_bytes(dicom(tmp_path, **kw))
    (tmp_path/'x').unlink()
    got = answers(tmp_path)
    if word: assert list(got) == ['x.dcm'] and word in got['x.dcm']
    else: assert len(got) == 3 and (got['x.dcm#1'] == GREYS[1]).all()


def test_an_xml_export_in_a_zip(tmp_path):
    "Its slices came in the order of the zip, and the view from the front as a scan"
    at = '<ImageData><ExamURL>C:\\x\\{}.tif</ExamURL></ImageData>'
    entry = f'<Image><ImageType><Type>{{}}</Type></ImageType>{at}</Image>'
    body = entry.format('LOCALIZER', 'slo')+''.join(entry.format('OCT', f'B{i}') for i in (10, 2, 1))
    files = {f'B{i}.tif': encoded('tiff', GREYS[k:k+1]) for k, i in enumerate((10, 2, 1))}
    files |= {'slo.tif': encoded('tiff', 255-GREYS[:1]), 'e.xml': f'<HEDX>{body}</HEDX>'.encode()}
    got = boxed(tmp_path, files)
    assert list(got) == ['e.xml#0', 'e.xml#1', 'e.xml#2'] and all((a == g).all() for a, g in zip(got.values(), GREYS))
    files.pop('B2.tif')
    with zipfile.ZipFile(tmp_path/'cut.zip', 'w') as z:
        for n, data in files.items(): z.writestr(f'deep/er/{n}', data)
    got = answers(tmp_path/'cut.zip')
    assert list(got) == [f'deep/er/e.xml#{i}' for i in range(3)] and 'not there' in got['deep/er/e.xml#1']


def e2e(parts, directory=True):
    "A Heidelberg database export of parts (series, slice, is it a B-scan, kind, data); its directory may be lost"
    start, entries, body = 140+44*len(parts), b'', b''
    for series, number, ind, kind, data in parts:
        who = struct.pack('<4i2HII', 1, 1, series, number, ind, 0, kind, 0)
        entries += struct.pack('<4I', 0, start+len(body), len(data), 0)+who
        body += struct.pack('<12s5I', b'MDbData', 0, 0, 0, len(data), 0)+who+data
    def head(magic, *last): return struct.pack('<12sI20s', magic, 100, bytes(20))+struct.pack(f'<{len(last)}I', *last)
    at = 88 if directory else 1 << 30
    return head(b'CMDb')+head(b'MDbMDir', 0, at, at, 0)+head(b'MDbDir', len(parts), 0, 0, 0)+entries+body


def slice_of(series, number, shape=(48, 64)):
    h, w = shape
    return series, 2*number, 1, 1 << 30, struct.pack('<5I', 2*h*w, 35652097, h*w, h, w)+bytes([number, 200])*(h*w)


def test_each_eye_of_an_export_is_a_volume(tmp_path):
    "Both eyes of a patient were one volume, and one row of --volumes"
    side = [(s, -1, 0, 11, bytes(14)+eye+bytes(12)) for s, eye in ((5, b'R'), (7, b'L'))]
    parts = [slice_of(5, i) for i in range(3)]+[slice_of(7, 0, (40, 50)), slice_of(9, 0)]+side
    (tmp_path/'x.e2e').write_bytes(e2e(parts))
    got = answers(tmp_path)
    assert list(got) == ['x.e2e#OD-1#0', 'x.e2e#OD-1#1', 'x.e2e#OD-1#2', 'x.e2e#OS-2#0', 'x.e2e#3#0']
    assert got['x.e2e#OS-2#0'].shape == (40, 50)
    t = pd.DataFrame(dict(path=list(got), abstain=False, urgent=False, p_NORMAL=.5, p_CNV=.5))
    assert by_volume(t).volume.tolist() == ['x.e2e#OD-1', 'x.e2e#OS-2', 'x.e2e#3']
    (tmp_path/'x.e2e').write_bytes(e2e(parts[:3]))
    assert list(answers(tmp_path)) == ['x.e2e#0', 'x.e2e#1', 'x.e2e#2']


def test_an_export_without_its_directory(tmp_path):
    "panimg finds the B-scans of such a file by the heads of its parts"
    parts = [slice_of(5, i) for i in range(3)]
    (tmp_path/'a.e2e').write_bytes(e2e(parts))
    (tmp_path/'b.e2e').write_bytes(e2e(parts, directory=False))
    stale = bytearray(e2e(parts))
    for i in range(3): struct.pack_into('<I', stale, 140+44*i+4, 999)
    (tmp_path/'c.e2e').write_bytes(stale)
    got = list(answers(tmp_path).values())
    assert len(got) == 9 and all((got[i] == got[i+k]).all() for i in range(3) for k in (3, 6))
    (tmp_path/'a.e2e').write_bytes(e2e(parts)[:-99]) # a directory that is sound, and a slice that is not there
    got = list(answers(tmp_path/'a.e2e', tmp_path).values())
    assert [isinstance(o, str) for o in got] == [False, False, True]


def test_the_mantissa_is_read_from_the_lowest_bit():
    "As the file of a real device settles: 1 + 1/2 has the lowest bit set"
    assert heidelberg_float16(np.array([63 << 10, 63 << 10 | 1, 63 << 10 | 512])).tolist() == [1, 1.5, 1+1/1024]


def test_a_scan_in_a_circle_says_so(tmp_path):
    circle = (7, 0, 0, 10004, bytes(72)+struct.pack('<I', 2)+bytes(300))
    volume = (5, 0, 0, 10004, bytes(72)+struct.pack('<I', 3)+bytes(300))
    (tmp_path/'x.e2e').write_bytes(e2e([slice_of(5, 0), slice_of(7, 0), volume, circle]))
    got = answers(tmp_path)
    assert not isinstance(got['x.e2e#1#0'], str) and 'circle around the optic nerve' in got['x.e2e#2#0']
    head = bytearray(2048)
    struct.pack_into('<12s3I', head, 0, b'HSF-OCT-103', 64, 1, 48)
    for pattern in (2, 3):
        struct.pack_into('<I', head, 96, pattern)
        (tmp_path/'x.vol').write_bytes(bytes(head)+bytes(4*48*64))
        assert isinstance(list(answers(tmp_path/'x.vol').values())[0], str) == (pattern == 2)


def test_topcon_takes_the_scan_and_not_its_reference_lines(tmp_path):
    "A file with both was answered from three lines that lie upside down, 16 bytes off"
    def chunk(name, frames, head):
        body = (struct.pack('<B4I', 2, 64, 48, 16, len(frames)).ljust(head, b'\0'))+(frames.astype('<u2')*200).tobytes()
        return bytes([len(name)])+name+struct.pack('<I', len(body))+body
    reference = chunk(b'@IMG_MOT_COMP_03', GREYS[:1, ::-1], 38)
    heads = {b'@IMG_SCAN_03': 22, b'@IMG_SCAN_02': 30, b'@IMG_MOT_COMP_03': 38, b'@IMG_MOT_COMP_02': 22}
    for name, head in heads.items():
        before = b'' if b'MOT' in name else reference
        (tmp_path/'x.fds').write_bytes(b'FOCTFDS'+bytes(8)+before+chunk(name, GREYS, head)+b'\0')
        got = list(answers(tmp_path).values())
        assert len(got) == 3 and all(np.abs(a-stretched(g).astype(int)).max() <= 1 for a, g in zip(got, GREYS)), name
    (tmp_path/'x.fds').write_bytes(b'FOCTFDS'+bytes(8)+chunk(name, GREYS, 25)+b'\0')
    assert 'cut short' in answers(tmp_path)['x.fds']


def test_zeiss_lines_have_their_own_size(tmp_path):
    "Two lines of 1024x1024 under the name of the cube were 128 slices of 32 rows"
    line = np.zeros((1024, 1024), np.uint8)
    line[:100, :50] = 255
    (tmp_path/'P1_Macular Cube 512x128_10-27-2014_OD_sn1_hidef_z.img').write_bytes(line.tobytes()*2)
    got = list(answers(tmp_path).values())
    assert len(got) == 2 and got[0].shape == (1024, 1024) and (got[0][-100:, -50:] == 255).all()
    (tmp_path/'P1_Macular Cube 512x128_10-27-2014_OD_sn1_hidef_z.img').write_bytes(line.tobytes()*3)
    assert 'not clear' in list(answers(tmp_path).values())[0]


def test_an_array_of_another_program_is_read(tmp_path):
    "Public sets come as .mhd, .mat, NIfTI, .npy and HDF5; each was 'not an image', and a folder of them held no scan"
    scipy_io, h5py = pytest.importorskip('scipy.io'), pytest.importorskip('h5py')
    volume = np.repeat(GREYS, 2, 0)
    files = {'d.raw': volume.tobytes(), 'd.mhd':
        b'NDims = 3\r\nDimSize = 64 48 6\r\nElementType = MET_UCHAR\r\nElementDataFile = d.raw\r\n'}
    for n, save in {
        'a.npy': lambda f: np.save(f, volume), 'b.npz': lambda f: np.savez_compressed(f, y=np.arange(9), images=volume),
        'c.mat': lambda f: scipy_io.savemat(f, dict(images=np.moveaxis(volume, 0, -1)), do_compression=True),
    }.items():
        save(b := io.BytesIO())
        files[n] = b.getvalue()
    b = io.BytesIO()
    with h5py.File(b, 'w') as f: f.create_dataset('x/images', data=volume, chunks=(1, 20, 30), compression='gzip')
    got = boxed(tmp_path, files | {'e.h5': b.getvalue(), 'labels.txt': b'1 2 3'})
    assert sorted(got) == [f'{n}#{i}' for n in ('a.npy', 'b.npz', 'c.mat', 'd.mhd', 'e.h5') for i in range(6)]
    assert all((a == volume[int(n[-1])]).all() for n, a in got.items())


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('along', (0, -1))
def test_nifti_has_its_rows_along_y(tmp_path, order, along):
    "Axes are x, y and z; where x counts the slices, the array was saved as slices, rows and columns"
    stack = np.repeat(GREYS, 2, 0).astype(order+'i2')
    x_first = stack.transpose(2, 1, 0) if along == 0 else stack
    head = bytearray(struct.pack(order+'i36x8h14xhh', 348, 3, *x_first.shape, 1, 1, 1, 1, 4, 16).ljust(352, b'\0'))
    struct.pack_into(order+'f', head, 108, 352)
    head[344:347] = b'n+1'
    data = bytes(head)+x_first.tobytes(order='F')
    got = boxed(tmp_path, {'a.nii': data, 'b.NII.GZ': gzip.compress(data)})
    assert sorted(got) == [f'{n}#{i}' for n in ('a.nii', 'b.NII.GZ') for i in range(6)]
    assert all((a == stack[int(n[-1])]).all() for n, a in got.items())


def test_one_scan_alone_keeps_its_name(tmp_path):
    for n, a in {'a.npy': GREYS[0], 'b.npy': GREYS[:1]}.items(): np.save(tmp_path/n, a)
    np.save(tmp_path/'c.npy', GREYS[0].astype(np.float32)/255)
    got = answers(tmp_path)
    assert list(got) == ['a.npy', 'b.npy', 'c.npy'] and all((a == GREYS[0]).all() for a in list(got.values())[:2])
    assert np.abs(got['c.npy']-GREYS[0].astype(int)).max() <= 1


@pytest.mark.parametrize('a, word', [
    (np.zeros((48, 64, 3), np.uint8), 'not clear'),
    (np.zeros((90, 40, 50), np.uint8), 'not clear'),
    (np.arange(500), 'no array'),
    (np.zeros((3, 48, 64), bool), 'no array'),
    (np.zeros((3, 48, 64), complex), 'no array'),
    (np.zeros((2, 3, 48, 64), np.uint8), 'no array'),
    (np.zeros((3, 48, 8), np.uint8), 'claims slices of 8x48'),
])
def test_an_array_that_is_no_stack_says_so(tmp_path, a, word):
    np.save(tmp_path/'a.npy', a)
    assert word in answers(tmp_path)['a.npy']


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/'ran',)
    np.save(tmp_path/'a.npy', np.array([[Evil()]*40]*40), allow_pickle=True)
    np.savez(tmp_path/'b.npz', images=np.array([[Evil()]*40]*40))
    assert all('no array' in o for o in answers(tmp_path).values()) and not (tmp_path/'ran').exists()


def test_arrays_that_swell_are_refused(tmp_path, monkeypatch):
    "What is said of the size is checked before, and what is unpacked is counted"
    h5py = pytest.importorskip('h5py')
    head = b'DimSize = 64 48 3\nElementType = MET_UCHAR\n'
    (tmp_path/'a.mha').write_bytes(head.replace(b'64 48 3', b'64000 48000 9999')+b'ElementDataFile = LOCAL\n')
    (tmp_path/'b.mha').write_bytes(head+b'CompressedData = True\nElementDataFile = LOCAL\n'+zlib.compress(bytes(2<<20)))
    (tmp_path/'c.nii.gz').write_bytes(gzip.compress(bytes(2<<20)))
    kind = struct.pack('<2I', 15, len(packed := zlib.compress(bytes(2<<20))))
    (tmp_path/'d.mat').write_bytes(b'MATLAB 5.0'.ljust(126)+b'IM'+kind+packed)
    kind = struct.pack('>2I', 15, len(packed))
    (tmp_path/'e.mat').write_bytes(b'MATLAB 5.0'.ljust(126)+b'MI'+kind+packed)
    with h5py.File(tmp_path/'f.h5', 'w') as f:
        d = f.create_dataset('images', (3, 48, 64), 'u1', chunks=(3, 48, 64), compression='gzip')
        d.id.write_direct_chunk((0, 0, 0), packed)
    with h5py.File(tmp_path/'g.h5', 'w') as f:
        (tmp_path/'secret').write_bytes(bytes(range(256))*36)
        f.create_dataset('images', (3, 48, 64), 'u1', external=[(str(tmp_path/'secret'), 0, 3*48*64)])
    with zipfile.ZipFile(tmp_path/'h.npz', 'w', zipfile.ZIP_DEFLATED) as z:
        np.save(b := io.BytesIO(), np.zeros((300, 200, 200), np.uint8))
        z.writestr('a.npy', b.getvalue())
    monkeypatch.setattr(formats, 'MAX_FILE', 1 << 20)
    monkeypatch.setattr(formats.inflated, '__defaults__', (15, 1 << 20))
    got = {k.partition('#')[0]: v for k, v in answers(tmp_path).items()}
    assert len(got) == 8 and all(isinstance(o, str) for o in got.values()), got
    assert 'cut short' in got['a.mha'] and 'no array' in got['g.h5'] and 'would unpack' in got['h.npz']
    assert all('at most' in got[k] for k in ('b.mha', 'c.nii.gz', 'd.mat', 'e.mat', 'f.h5')), got


def test_metaimage_stays_in_its_folder(tmp_path):
    (tmp_path/'inner').mkdir()
    (tmp_path/'x.raw').write_bytes(GREYS.tobytes())
    head = 'DimSize = 64 48 3\nElementType = MET_UCHAR\nElementDataFile = {}\n'
    for n, at in {'a.mhd': '../x.raw', 'b.mhd': str(tmp_path/'x.raw')}.items():
        (tmp_path/'inner'/n).write_text(head.format(at))
    assert all('No such file' in o for o in answers(tmp_path/'inner').values())


def test_hdf5_needs_its_extra(tmp_path, monkeypatch):
    (tmp_path/'a.h5').write_bytes(b'\x89HDF')
    monkeypatch.setitem(sys.modules, 'h5py', None)
    assert answers(tmp_path)['a.h5'] == "Reading it needs h5py: pip install 'oct_classify[formats]'."
