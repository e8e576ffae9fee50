"""Ten thousand damaged files: is each answered with pixels, a model, or one sentence?

    python bench/fuzz.py [--n 10000] [--seed 0] [--workers 2] [--seconds 10] [--memory 2048] [--only KIND] [--bundle
        DIR] [--scans-only] [--keep DIR]

Takes one sound file of each kind (JPEG grey, colour and progressive, PNG of 8 and 16 bits, TIFF, BMP, GIF, WebP,
DICOM uncompressed, RLE, JPEG and JPEG 2000, single and
multi-frame, zip, CSV, Zeiss .img, Heidelberg .vol and .e2e, Topcon .fda and .fds,
pictures of several pages, .npy, .npz, .mat, HDF5, MetaImage, NIfTI, config.json, model.safetensors and
model.onnx with its data of a tiny bundle), damages it (bits flipped, cut
short, heads swapped, spans randomised, chunks doubled, sizes made absurd), and reads it: scans by `scans_of`,
`image()` and `placed`, bundles by `OctModel.load` and one prediction in each engine
there is, once as it is and once with the sums in config.json made to fit. Further kinds are made, not damaged: lists
that name addresses and what lies outside, folders of pipes, devices, circles and sparse files, parquet tables that
swell, scans that unpack to gigabytes, ONNX graphs that grow or never end. Worker processes read; a watchdog ends one
that takes longer than `--seconds` for a file, and a worker's peak of resident memory is measured. Prints counts by
kind:
answered, refused in one sentence, failed (another exception), crashed, hung, over the memory limit; the highest peak
and the slowest file. `--keep` stores what went wrong.
"""
import argparse
import inspect
import io
import json
import multiprocessing as mp
import os
import queue
import re
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from oct_classify.core import *
from oct_classify.inference.inputs import scans_of
from oct_classify.phantoms.phantom import Phantom
from oct_classify.data.prepare import placed


def encoded(px, kind, **kw):
    b = io.BytesIO()
    Image.fromarray(px).save(b, kind, **kw)
    return b.getvalue()


def dicom(frames, coding):
    "A DICOM file of uint8 frames; None where its parts are not installed"
    try:
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.encaps import encapsulate
        from pydicom import uid, dcmwrite
    except ImportError:
        return None
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dict(jpeg=uid.JPEGBaseline8Bit, j2k=uid.JPEG2000Lossless).get(
        coding, uid.ExplicitVRLittleEndian
    )
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = '1.2.840.10008.5.1.4.1.1.77.1.5.4', '1.2.3'
    ds = FileDataset('x', {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PatientName = meta.MediaStorageSOPClassUID, '1.2.3', 'Phantom'
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *frames.shape[1:], 1, 'MONOCHROME2'
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.NumberOfFrames = len(frames)
    ds.PixelData = (
        encapsulate([encoded(f, 'jpeg') if coding == 'jpeg' else encoded(f, 'jpeg2000', no_jp2=True) for f in frames])
        if coding in ('jpeg', 'j2k')
        else frames.tobytes()
    )
    ds['PixelData'].VR, ds['PixelData'].is_undefined_length = 'OB', coding in ('jpeg', 'j2k')
    if coding == 'rle':
        ds.compress(uid.RLELossless)
    b = io.BytesIO()
    dcmwrite(b, ds, enforce_file_format=True)
    return b.getvalue()


def vol(frames):
    n, h, w = frames.shape
    head = bytearray(2048)
    struct.pack_into('<12s3I3d2I2d', head, 0, b'HSF-OCT-103', w, n, h, .01, .1, .004, 8, 8, .01, .01)
    struct.pack_into('<I', head, 100, 256)
    return bytes(head)+bytes(64)+b''.join(bytes(256)+(np.exp(f/255*8.285-8.3)).astype('<f4').tobytes() for f in frames)


def e2e(frames):
    n, h, w = frames.shape
    size, start = 20 + 2 * h * w, 88 + 52 + 44 * n
    head = lambda magic, *last: (
        struct.pack('<12sI20s', magic, 100, bytes(20)) + (struct.pack('<4I', *last) if last else b'')
    )
    who = lambda i: struct.pack('<4i2HII', 1, 1, 1, 2 * i, 1, 0, 1 << 30, 0)
    out = (
        head(b'CMDb')
        + head(b'MDbMDir', n, 88, 88, 0)
        + head(b'MDbDir', n, 0, 0, 0)
        + b''.join(struct.pack('<4I', 0, start + i * (60 + size), size, 0) + who(i) for i in range(n))
    )
    return out + b''.join(
        struct.pack('<12s5I', b'MDbData', 0, 0, 0, size, 0)
        + who(i)
        + struct.pack('<5I', 2 * h * w, 35652097, h * w, h, w)
        + (f.astype('<u2') * 200).tobytes()
        for i, f in enumerate(frames)
    )


def topcon(frames, jpeg):
    n, h, w = frames.shape
    data = [encoded(f, 'jpeg2000') for f in frames]
    body = (
        struct.pack('<B6I', 2, 0, 0, w, h, n, 0) + b''.join(struct.pack('<I', len(d)) + d for d in data)
        if jpeg
        else struct.pack('<B4IBI', 2, w, h, 16, n, 0, 0) + (frames.astype('<u2') * 200).tobytes()
    )
    key = b'@IMG_JPEG' if jpeg else b'@IMG_SCAN_03'
    return (
        b'FOCTFDA'
        + bytes(8)
        + b'\x05@JUNK'
        + struct.pack('<I', 3)
        + b'abc'
        + bytes([len(key)])
        + key
        + struct.pack('<I', len(body))
        + body
        + b'\0'
    )


def arrays(frames):
    "The arrays of other programs"
    import gzip
    from scipy.io import savemat

    saved = {k: io.BytesIO() for k in ('npy', 'npz', 'mat', 'h5')}
    np.save(saved['npy'], frames)
    np.savez_compressed(saved['npz'], images=frames)
    savemat(saved['mat'], dict(images=np.moveaxis(frames, 0, -1)), do_compression=True)
    if find_spec('h5py'):
        import h5py

        with h5py.File(saved['h5'], 'w') as f:
            f.create_dataset('images', data=frames, compression='gzip', shuffle=True)
    out = {k: (f'x.{k}', b.getvalue()) for k, b in saved.items() if b.getvalue()}
    mha = f'DimSize = {frames.shape[2]} {frames.shape[1]} 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n'
    nii = struct.pack('<i36x8h14xhh', 348, 3, *frames.shape[::-1], 1, 1, 1, 1, 2, 8).ljust(108) + struct.pack('<f', 352)
    nii = nii.ljust(344) + b'n+1\0' + bytes(4) + frames.tobytes()
    return out | dict(
        mha=('x.mha', mha.encode() + frames.tobytes()), nii=('x.nii', nii), niigz=('x.nii.gz', gzip.compress(nii))
    )


def packed(files):
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED) as z:
        for n, d in files.items(): z.writestr(n, d)
    return b.getvalue()


def sound_scans():
    "{kind: (file name, bytes)}"
    frames = np.stack([Phantom(3, 'DME', patient=7, number=i, shape=(96, 128), border=False).image for i in range(3)])
    px = frames[0]
    rgb, deep = np.stack([px, px // 2, 255 - px], -1), px.astype(np.uint16) * 257
    pages = dict(save_all=True, append_images=[Image.fromarray(f) for f in frames[1:]])
    out = {
        'jpeg grey': ('x.jpg', encoded(px, 'jpeg')),
        'jpeg colour': ('x.jpg', encoded(rgb, 'jpeg')),
        'jpeg progressive': ('x.jpg', encoded(px, 'jpeg', progressive=True)),
        'png 8': ('x.png', encoded(px, 'png')),
        'png 16': ('x.png', encoded(deep, 'png')),
        'tiff': ('x.tif', encoded(px, 'tiff')),
        'tiff lzw': ('x.tif', encoded(px, 'tiff', compression='tiff_lzw')),
        'tiff deep': ('x.tif', encoded(deep, 'tiff', compression='tiff_deflate')),
        'bmp': ('x.bmp', encoded(px, 'bmp')),
        'gif': ('x.gif', encoded(px, 'gif')),
        'webp': ('x.webp', encoded(rgb, 'webp')),
        'pages tif': ('x.tif', encoded(px, 'tiff', compression='tiff_lzw', **pages)),
        'pages gif': ('x.gif', encoded(px, 'gif', **pages)),
        'pages png': ('x.png', encoded(px, 'png', **pages)),
        'pages webp': ('x.webp', encoded(px, 'webp', **pages)),
        'zip': (
            'x.zip',
            packed({'CNV/a.jpg': encoded(px, 'jpeg'), 'b.png': encoded(px, 'png'), 'c.vol': vol(frames[:1])}),
        ),
        'csv': ('x.csv', b'path,label\nsound.jpg,CNV\nsound.png,DME\n"a,b.png",DME\n'),
        'img': ('x 128x3_cube_z.img', frames[:, ::-1, ::-1].tobytes()),
        'vol': ('x.vol', vol(frames)),
        'e2e': ('x.e2e', e2e(frames)),
        'fda': ('x.fda', topcon(frames, True)),
        'fds': ('x.fds', topcon(frames, False)),
    }
    out |= arrays(frames)
    for coding in ('plain', 'rle', 'jpeg', 'j2k'):
        for n in (1, 3):
            if d := dicom(frames[:n], coding):
                out[f'dicom {coding} {n}'] = ('x.dcm', d)
    if find_spec('pydicom') and find_spec('libjpeg'):  # nothing here writes these, but pydicom brings one of each
        from pydicom.data import get_testdata_file

        for k, f in {'dicom jpeg-ls': 'MR_small_jpeg_ls_lossless.dcm', 'dicom jpeg 12 bit': 'JPGExtended.dcm'}.items():
            if p := get_testdata_file(f, download=False):
                out[k] = ('x.dcm', re.sub(rb'(?<=\x08\0`\0CS\x02\0)..', b'OT', Path(p).read_bytes())) # of no eye
    return out


def tiny_bundle(at, onnx=True):
    "A bundle of a tiny network with random weights"
    import torch
    from oct_classify.training.network import network
    from oct_classify.inference.bundle import save_bundle

    torch.manual_seed(0)
    return save_bundle(
        at,
        network('resnet10t', len(CLASSES), (64, 64)),
        dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole'),
        onnx=onnx and bool(find_spec('onnx') and find_spec('onnxscript')),
    )


def summed_anew(at):
    "The sums in config.json are those of the files as they are: as if someone had made the bundle on purpose"
    from oct_classify.inference.bundle import write_config
    write_config(at, json.loads((at/'config.json').read_text()))


def damage(rng, data, other=b''):
    "One of nine ways to damage a file"
    b, n = bytearray(data), len(data)
    spot = lambda: (
        int(rng.integers(0, n)) if rng.random() < 0.5 else int(rng.integers(0, min(n, 400)))
    )  # the head as often as all of the rest
    way = int(rng.integers(0, 9))
    if way == 0:
        for _ in range(int(2 ** rng.uniform(0, 7))):
            b[spot()] ^= 1 << int(rng.integers(0, 8))
    elif way == 1:
        del b[int(rng.integers(0, n)) :]
    elif way == 2:
        k = int(rng.integers(1, 512))
        b[:k] = other[:k]
    elif way == 3:
        k, m = spot(), int(2 ** rng.uniform(0, 12))
        b[k : k + m] = rng.bytes(min(m, n - k))
    elif way == 4:
        k, m = spot(), int(2 ** rng.uniform(0, 12))
        b[k:k] = b[k : k + m] * int(rng.integers(1, 20))
    elif way == 5:  # absurd sizes where numbers of two, four or eight bytes may stand
        for _ in range(int(rng.integers(1, 6))):
            k, w = spot(), int(rng.choice([2, 4, 8]))
            v = int(rng.choice([0, 1, 0x7F, 0xFF])) if rng.random() < 0.5 else None
            b[k : k + w] = rng.bytes(w) if v is None else bytes([v]) * w
    elif way == 6:
        k = spot()
        del b[k : k + int(2 ** rng.uniform(0, 10))]
    elif way == 7:
        b += rng.bytes(int(2 ** rng.uniform(0, 14)))
    else:  # words of a text made absurd, as in JSON
        digits = [i for i in range(n) if 48 <= b[i] < 58]
        if digits:
            k = int(rng.choice(digits))
            b[k : k + 1] = rng.choice(
                [b'999999999999', b'-1', b'1e999', b'null', b'[]', b'NaN', b'"x"', b'0', b'{"a":' * 2000]
            )
        else:
            b[spot()] ^= 255
    return bytes(b)


LINES = (
    'sound.jpg',
    'sound.png',
    '../sound.png',
    '/etc/hostname',
    '/dev/zero',
    'file:///etc/passwd',
    'reference://x::a.json',
    'simplecache::file:///etc/hostname',
    'python://x',
    'zip://a.png::x.zip',
    'C:\\x.png',
    '\\\\server\\x.png',
    '.',
    '..',
    'nowhere/*.png',
    '~',
    '$HOME',
    'list.csv',
    'x' * 5000,
    'sound.jpg\0.png',
    '"',
    "'",
    '=1+1',
    '\x1b[2J',
    'ä.png',
    '?',
)


def made_list(rng, folder):
    "A list of files with a head or none, in one of several encodings, of which some lines lead astray"
    head, separator = (
        str(rng.choice(['path', 'path,label', 'PATH;label', 'a\tb', 'x'])),
        str(rng.choice([',', ';', '\t'])),
    )
    lines = [separator.join(rng.choice(LINES, int(rng.integers(1, 4)))) for _ in range(int(rng.integers(0, 60)))]
    code = str(rng.choice(['utf-8', 'utf-8-sig', 'utf-16', 'latin-1']))
    (folder / 'x.csv').write_bytes('\n'.join([head] * int(rng.integers(0, 2)) + lines).encode(code, 'replace'))
    return folder / 'x.csv'


def made_folder(rng, folder):
    "Class folders that hold pipes, devices, circles, links to nowhere, sparse files, and sound pictures"
    for i in range(int(rng.integers(1, 12))):
        p = (
            folder
            / str(rng.choice(['CNV', 'train/DME', 'test/NORMAL']))
            / f'DME-{i}-1.{rng.choice(["png", "dcm", "zip", "vol", "x"])}'
        )
        p.parent.mkdir(parents=True, exist_ok=True)
        kind = int(rng.integers(0, 6))
        if kind == 0:
            os.mkfifo(p)
        elif kind == 1:
            p.symlink_to(str(rng.choice(['/dev/zero', '/dev/null', '/dev/random', '/proc/self/mem', '/', '..'])))
        elif kind == 2:
            p.symlink_to(p)
        elif kind == 3:
            p.symlink_to('nowhere')
        elif kind == 4:
            with open(p, 'wb') as f:
                f.truncate(int(10 ** rng.uniform(0, 11)))
        else:
            os.link(folder.parent / 'sound.png', p)
    return folder


def made_table(rng, folder):
    "A parquet table of any codec, whose texts may be stored once for many rows, or which holds lists"
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = int(10 ** rng.uniform(0, 6))
    text = pa.array(['x' * int(10 ** rng.uniform(0, 6))])
    columns = dict(path=pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), text))
    for k in range(int(rng.integers(0, 8))): columns[f'p_{k}'] = pa.array(np.zeros(n))
    if rng.random() < .2: columns['nested'] = pa.array([[1]] * n)
    codec = str(rng.choice(['snappy', 'snappy', 'none', 'zstd', 'gzip']))
    pq.write_table(pa.table(columns), folder / 'x.parquet', compression=codec, store_schema=bool(rng.random() < .5))
    if rng.random() < .5: (folder / 'x.parquet').write_bytes(damage(rng, (folder / 'x.parquet').read_bytes()))
    return folder / 'x.parquet'


def made_bomb(rng, folder):
    "A scan that would take gigabytes or minutes: passes of a JPEG, runs of an RLE frame, a deflated plane, members"
    n, way = int(10 ** rng.uniform(3, 6.5)), int(rng.integers(0, 6))
    px = np.zeros((int(rng.integers(40, 1000)), int(rng.integers(40, 1000))), np.uint8)
    if way == 0:
        data = encoded(px, 'jpeg', progressive=True)
        at = data.rindex(b'\xff\xda')
        name, data = 'x.jpg', data[:at] + data[at:-2] * (n // 100)
    elif way == 1:
        name, data = 'x.dcm', dicom(px[None], 'rle') or b''
        at = data.find(struct.pack('<16I', 1, 64, *[0] * 14))
        data = data[: at - 4] + struct.pack('<I', 64 + 2 * n) + data[at : at + 64] + b'\x81\0' * n
    elif way == 2:
        name, data = 'x.png', encoded(np.zeros((n // 4000 + 40, 4000), np.uint8), 'png')
    elif way == 3:
        name, data = 'x.tif', encoded(np.zeros((n // 4000 + 40, 4000), np.uint8), 'tiff', compression='tiff_deflate')
    elif way == 4:
        name, data = 'x.zip', packed({f'{i}.png': bytes(n) for i in range(int(rng.integers(1, 5)))})
    else:
        name, data = 'x.xml', b'<HEDX>' + b'<a>' * (n // 10) + b'<b/>' * n
    (folder / name).write_bytes(data)
    return folder / name


def made_onnx(rng, bundle, folder):
    "A bundle whose sums fit, and whose graph has a node that makes a huge constant, never ends, or calls what it likes"
    import onnx
    from onnx import helper as h

    for f in Path(bundle).iterdir():
        os.link(f, folder / f.name)
    model = onnx.load(folder / 'model.onnx', load_external_data=False)
    size = h.make_tensor('size', onnx.TensorProto.INT64, [2], [int(10 ** rng.uniform(0, 6)) for _ in range(2)])
    model.graph.initializer.append(size)
    one = h.make_tensor('one', onnx.TensorProto.FLOAT, [], [1.0])
    yes = h.make_tensor('yes', onnx.TensorProto.BOOL, [], [True])
    many = h.make_tensor('many', onnx.TensorProto.INT64, [], [2**62])
    model.graph.initializer.extend([one, yes, many])
    body = h.make_graph(
        [h.make_node('Identity', ['c'], ['d'])],
        'body',
        [
            h.make_tensor_value_info('i', onnx.TensorProto.INT64, []),
            h.make_tensor_value_info('c', onnx.TensorProto.BOOL, []),
        ],
        [h.make_tensor_value_info('d', onnx.TensorProto.BOOL, [])],
    )
    nodes = [
        h.make_node('ConstantOfShape', ['size'], ['huge']),
        h.make_node('Expand', ['one', 'size'], ['huge']),
        h.make_node('Loop', ['many', 'yes'], [], body=body),
        h.make_node('Tile', ['size', 'many'], ['huge']),
        h.make_node('RandomNormal', [], ['huge'], shape=[100_000, 100_000]),
        h.make_node('Anything', ['one'], ['huge'], domain='com.stranger'),
    ]
    node = nodes[int(rng.integers(0, len(nodes)))]
    model.graph.node.insert(0, node)
    if node.output:
        model.graph.output.append(h.make_tensor_value_info('huge', onnx.TensorProto.FLOAT, None))
    (folder / 'model.onnx').unlink()
    (folder / 'model.onnx').write_bytes(model.SerializeToString())
    summed_anew(folder)
    return folder


def read_scan(path):
    "How many scans of a file were answered, and how many refused"
    got = Counter()
    try: scans = scans_of(path)
    except OctError: return Counter(refused=1)
    for s in scans[:20]:
        try:
            px, _ = placed(s.image(), 64)
            assert px.shape == (64, 64) and px.dtype == np.uint8
            got['answered'] += 1
        except OctError as e:
            assert str(e) and '\n' not in str(e), repr(str(e))
            got['refused'] += 1
    return got


def read_bundle(path):
    from oct_classify.inference.model import OctModel
    got = Counter()
    many = 'engine' in inspect.signature(OctModel.load).parameters
    for engine in ('torch', 'onnx') if many else (None,):
        if engine == 'onnx' and not (Path(path)/'model.onnx').exists(): continue
        try:
            m = OctModel.load(path, device='cpu', **({'engine': engine} if many else {}))
            assert m.probs(np.zeros((1, *m.config['size']), np.uint8)).shape == (1, len(m.classes))
            got['answered'] += 1
        except OctError as e:
            assert str(e) and '\n' not in str(e), repr(str(e))
            got['refused'] += 1
    return got


def read_table(path):
    from oct_classify.data.scans import load_table
    try: load_table(path)
    except OctError as e:
        assert str(e) and '\n' not in str(e), repr(str(e))
        return Counter(refused=1)
    return Counter(answered=1)


def read_folder(path):
    "As `audit` and `run` read a folder, and as `predict` does"
    from oct_classify.data.scans import scan_table
    try: errors = scan_table(path).error
    except OctError as e:
        assert str(e) and '\n' not in str(e), repr(str(e))
        return read_scan(path)
    assert not errors.str.contains('\n').any()
    return read_scan(path) + Counter(answered=int((errors == '').sum()), refused=int((errors != '').sum()))


def read(path):
    path = Path(path)
    if path.suffix == '.parquet': return read_table(path)
    if not path.is_dir(): return read_scan(path)
    return read_bundle(path) if (path / 'config.json').exists() else read_folder(path)


def jobs(folder, n, seed, bundle, only=''):
    "Yields kind and path of each damaged file; each is to be removed when read"
    sound = sound_scans()
    for k in ('jpg', 'png'):
        (folder / f'sound.{k}').write_bytes(next(d for f, d in sound.values() if f.endswith(k)))
    parts = (
        {
            f: (Path(bundle) / f).read_bytes()
            for f in ('config.json', 'model.safetensors', 'model.onnx', 'model.onnx.data')
            if (Path(bundle) / f).exists()
        }
        if bundle
        else {}
    )
    made = dict(list=made_list, special=made_folder, parquet=made_table, bomb=made_bomb)
    if 'model.onnx' in parts: made['onnx graph'] = lambda rng, folder: made_onnx(rng, bundle, folder)
    kinds = [*sound, *parts, *(f'{f}, summed' for f in parts if f != 'config.json'), *(f'made {k}' for k in made)]
    kinds = [k for k in kinds if only in k]
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        kind = kinds[i % len(kinds)]
        part = kind.removesuffix(', summed')
        if kind.startswith('made '):
            (at := folder / f'{i}').mkdir()
            if kind == 'made list':
                for k in ('jpg', 'png'): os.link(folder / f'sound.{k}', at / f'sound.{k}')
            at = made[kind.removeprefix('made ')](rng, at)
        elif part in parts:
            at = folder / f'{i}'
            at.mkdir()
            for f in parts:  # hard links: only the damaged one is written
                if f != part:
                    os.link(Path(bundle) / f, at / f)
            (at / part).write_bytes(damage(rng, parts[part], rng.bytes(512)))
            if part != kind:
                summed_anew(at)
        else:
            name, data = sound[kind]
            at = folder / f'{i}' / name
            at.parent.mkdir()
            if kind == 'csv':
                for k in ('jpg', 'png'):
                    os.link(folder / f'sound.{k}', at.parent / f'sound.{k}')
            at.write_bytes(damage(rng, data, sound[str(rng.choice(list(sound)))][1]))
        yield i, kind, at


def clear(at):
    import shutil
    shutil.rmtree(at if at.is_dir() else at.parent, ignore_errors=True)


def peak():
    "Highest resident memory of this process in MB"
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1024 if sys.platform == 'linux' else 2**20)


def work(todo, done, sound):
    warnings.simplefilter('ignore')
    import logging
    logging.disable(logging.CRITICAL)
    for path in sound: # imports are paid for, and what is not damaged must be answered
        got = read(path)
        assert got['answered'] and not got['refused'], (path, got)
    done.put('ready')
    while (job := todo.get()) is not None:
        i, path = job
        t, before = time.time(), peak()
        try: got, said = read(path), ''
        except BaseException as e: got, said = Counter(failed=1), f'{type(e).__name__}: {e}'[:300]
        done.put((i, got, said, time.time()-t, before, peak()))


class Worker:
    "A process that reads one file at a time"

    def __init__(self, sound):
        ctx = mp.get_context('spawn')
        self.todo, self.done, self.job = ctx.Queue(), ctx.Queue(), None
        self.p = ctx.Process(target=work, args=(self.todo, self.done, sound), daemon=True)
        self.p.start()
        self.done.get(timeout=180)

    def give(self, job):
        self.job, self.since = job, time.time()
        self.todo.put((job[0], str(job[2])))

    def check(self, seconds):
        "The answer to its file; None while it reads"
        try:
            return self.done.get(timeout=0.002)[1:]
        except queue.Empty:
            pass
        if not self.p.is_alive():
            try:
                return self.done.get(timeout=0.2)[1:]
            except queue.Empty:
                return Counter(crash=1), f'exit code {self.p.exitcode}', 0, 0, 0
        if time.time() - self.since > seconds:
            self.p.kill()
            self.p.join()
            return Counter(hang=1), 'no answer', time.time() - self.since, 0, 0


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k, v in dict(n=10_000, seed=0, workers=2, memory=2048).items():
        ap.add_argument(f'--{k}', type=int, default=v)
    ap.add_argument('--seconds', type=float, default=10)
    ap.add_argument('--keep')
    ap.add_argument('--only', default='', help='kinds whose name holds this')
    ap.add_argument('--bundle', help='a bundle to damage instead of a tiny one')
    ap.add_argument('--scans-only', action='store_true')
    a = ap.parse_args()
    counts, slow, top, wrong, began = defaultdict(Counter), (0, '', 0), 0, [], time.time()
    with tempfile.TemporaryDirectory() as d:
        bundle = None if a.scans_only else a.bundle or tiny_bundle(Path(d) / 'bundle')
        sound = [str(bundle)] if bundle else []
        for k, (name, data) in sound_scans().items():
            if k == 'csv':
                continue
            (at := Path(d) / 'sound' / k).mkdir(parents=True)
            (at / name).write_bytes(data)
            sound.append(str(at / name))
        source, workers = jobs(Path(d), a.n, a.seed, bundle, a.only), [Worker(sound) for _ in range(a.workers)]
        while any(w.job for w in workers) or source:
            for k, w in enumerate(workers):
                if not w.job:
                    if source and (job := next(source, None)):
                        w.give(job)
                    else:
                        source = None
                    continue
                if (got := w.check(a.seconds)) is None:
                    continue
                (i, kind, at), (n, said, took, before, high) = w.job, got
                if high > a.memory and high > before:
                    n, said = Counter(memory=1), f'{high:.0f} MB'
                counts[kind]['files'] += 1
                counts[kind].update({k: 1 if k in ('answered', 'refused') else v for k, v in n.items()})
                if not n:
                    counts[kind]['nothing'] += 1
                top = max(top, high)
                slow, w.job = max(slow, (took, kind, i)), None
                if set(n) - {'answered', 'refused'}:
                    wrong.append((kind, i, dict(n), said))
                    print(f'{kind}, file {i} of seed {a.seed}: {dict(n)} {said}', flush=True)
                    if a.keep:
                        import shutil

                        shutil.copytree(at if at.is_dir() else at.parent, Path(a.keep) / f'{i}', dirs_exist_ok=True)
                if 'crash' in n or 'hang' in n or 'memory' in n:
                    w.p.kill()
                    workers[k] = Worker(sound)
                clear(at)
        for w in workers:
            w.todo.put(None)
        for w in workers:
            w.p.join(5)
    cols = ('files', 'answered', 'refused', 'nothing', 'failed', 'crash', 'hang', 'memory')
    print(f"{'kind':26}" + ''.join(f'{c:>10}' for c in cols))
    total = Counter()
    for k, c in counts.items():
        total.update(c)
        print(f'{k:26}' + ''.join(f'{c[o]:>10}' for o in cols))
    print(f"{'all':26}" + ''.join(f'{total[o]:>10}' for o in cols))
    print(
        f'peak of a worker {top:.0f} MB; slowest {slow[0]:.2f} s ({slow[1]}, file {slow[2]}); '
        f'{time.time() - began:.0f} s in all'
    )
    print(json.dumps(dict(total, peak_mb=round(top), slowest_s=round(slow[0], 2), seed=a.seed)))
    return 1 if wrong else 0


if __name__ == '__main__': sys.exit(main())
