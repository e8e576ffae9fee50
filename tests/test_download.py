"The download room with Kaggle's real client, against a server on loopback: see kaggle_server.py."
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections import Counter

import pytest

from kaggle_server import DATASET, STORAGE, TOKEN, KaggleServer
from oct_classify.data import download as room
from oct_classify.core import *
from oct_classify.data.scans import find_scans
from oct_classify.data.download import download, unpack

SECRETS = 'planted-token', 'planted-key', 'planted-signature'


def archive(path, n=30, size=4000, seed=0):
    "A zip laid out like the published one, of `n` files in each class folder; returns {path: SHA-256}"
    rnd, want = random.Random(seed), {}
    with zipfile.ZipFile(path, 'w') as z:
        for folder in ('train', 'test'):
            for c in CLASSES:
                for i in range(n):
                    name, data = f'{folder}/{c}/{c}-{i}-1.jpeg', rnd.randbytes(size)
                    z.writestr(f'OCT2017 /{name}', data)
                    want[f'OCT2017/{name}'] = hashlib.sha256(data).hexdigest()
    return want


def contents(d):
    return {
        p.relative_to(d).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in d.rglob('*')
        if p.is_file() and p.name != room.RECEIPT
    }


def complete(dest, want):
    "Is everything there, each byte right, and nothing else?"
    return contents(dest/'scans') == want and os.listdir(dest) == ['scans']


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp('archive')/'a.zip'
    return path, archive(path)


@pytest.fixture
def server(made, tmp_path, monkeypatch):
    monkeypatch.setattr(room, 'PAUSE', 0)
    (tmp_path/'home').mkdir()
    with KaggleServer(made[0].read_bytes()) as s, s.visit(tmp_path/'home'): yield s


def ranges(server): return [int(o['range'][6:-1]) for o in server.log if o['range']]


def refused(*args, **kwargs):
    "The one sentence that a download ends with"
    with pytest.raises(OctError) as e:
        download(*args, **kwargs)
    text = str(e.value)
    assert (
        text.count('\n') == 0
        and not any(o in text for o in SECRETS)
        and e.value.__suppress_context__ | (e.value.__context__ is None)
    )
    return text


def test_a_download_and_a_second_call(server, made, tmp_path, capfd):
    assert download(tmp_path / 'd') == tmp_path / 'd'
    assert complete(tmp_path / 'd', made[1]) and len(find_scans(tmp_path / 'd')) == len(made[1])
    asked = len(server.log)
    download(tmp_path / 'd')
    assert len(server.log) == asked  # nothing was asked the second time
    out, err = capfd.readouterr()
    assert out == '' and 'MD5 verified' in err and 'each with the right CRC-32' in err and 'holds scans already' in err
    assert all(
        o['login'] == (f'Bearer {TOKEN}' if o['method'] == 'POST' else None) for o in server.log
    )  # the storage never sees the login


def test_a_progress_bar_with_rate_and_remaining_time(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    server.rate = 500_000
    download(tmp_path/'d')
    assert re.search(r'Downloading: +\d+%.*\d+:\d\d<\d+:\d\d, +[\d.]+[kM]?B/s', capfd.readouterr().err)


def test_a_line_that_is_cut_again_and_again(server, made, tmp_path):
    "More interruptions than attempts are allowed, but each brings something"
    server.faults += [dict(cut=100_000)] * 8
    download(tmp_path / 'd')
    assert (
        complete(tmp_path / 'd', made[1]) and len(ranges(server)) == 9 and sorted(set(ranges(server))) == ranges(server)
    )


def test_a_line_that_brings_nothing(server, made, tmp_path):
    server.faults += [dict(cut=100_000)] + [dict(cut=0)] * 5
    assert re.search(
        r'connection broke off and 5 attempts in a row brought nothing.* the [\d.]+ kB that arrived are kept\.$',
        refused(tmp_path / 'd'),
    )
    arrived = ranges(server)[-1]
    download(tmp_path / 'd')
    assert arrived > 0 and ranges(server)[-1] == arrived and complete(tmp_path / 'd', made[1])


def test_a_server_that_ignores_range(server, made, tmp_path):
    server.faults += [
        dict(cut=200_000),
        dict(ranges=False, cut=150_000),
        dict(ranges=False, cut=300_000),
        dict(ranges=False),
    ]
    download(tmp_path / 'd')
    assert complete(tmp_path / 'd', made[1]) and len(ranges(server)) == 4
    server.faults += [dict(cut=200_000)] + [dict(ranges=False, cut=150_000)] * 5  # never gets as far as we are
    assert '5 attempts' in refused(tmp_path / 'e')


def test_a_range_that_begins_elsewhere(server, made, tmp_path):
    server.faults += [dict(cut=200_000), dict(begin=-5)]
    download(tmp_path/'d')
    assert complete(tmp_path/'d', made[1]) and ranges(server)[-1] == 0


@pytest.mark.parametrize('n', [30, 2])
def test_an_archive_that_changes_between_attempts(server, tmp_path, n):
    "To another of the same size, or to one that ends before what is here"
    want = archive(tmp_path/'new.zip', n, seed=1)
    server.faults += [dict(cut=200_000)] + [dict(cut=0)]*5
    refused(tmp_path/'d')
    server.change((tmp_path/'new.zip').read_bytes())
    download(tmp_path/'d')
    assert complete(tmp_path/'d', want) and ranges(server)[-1] == 0


def test_a_complete_part_is_not_asked_for_again(server, made, tmp_path, monkeypatch):
    "Killed between the last byte and the verification"
    monkeypatch.setattr(room, 'verify', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): download(tmp_path/'d')
    monkeypatch.undo()
    n = len(server.log)
    with server.visit(tmp_path/'home'): download(tmp_path/'d')
    assert complete(tmp_path/'d', made[1]) and len(server.log) == n


@pytest.mark.parametrize('fault', [dict(length=-9), dict(length=-9, md5=False)])
def test_a_length_that_is_too_small(server, made, tmp_path, fault):
    server.faults += [fault]
    assert 'arrived damaged' in refused(tmp_path/'d')
    assert os.listdir(tmp_path/'d') == []
    download(tmp_path/'d')
    assert complete(tmp_path/'d', made[1])


def test_a_length_that_is_too_large(server, made, tmp_path):
    server.faults += [dict(length=9)]*5
    assert '5 attempts' in refused(tmp_path/'d')
    download(tmp_path/'d') # the server tells the truth now: the part belongs to another length, so it starts anew
    assert complete(tmp_path/'d', made[1])


def test_bytes_that_flip_on_the_way(server, made, tmp_path):
    good = server.body
    server.change(good[:9000] + bytes([good[9000] ^ 1]) + good[9001:], honest=good)
    assert 'its MD5' in refused(tmp_path/'d') and os.listdir(tmp_path/'d') == []
    server.faults += [dict(md5=False)]
    assert 'damaged or cut short' in refused(tmp_path/'e') # without an MD5 it is the CRC-32 of the file that tells
    assert os.listdir(tmp_path/'e') == ['kermany2018.zip']


def test_a_busy_server(server, made, tmp_path):
    server.api += [dict(code=429, after=1), dict(code=500)]
    server.faults += [dict(status=500, after=0), dict(status=403)] # 403: the address has expired
    t = time.time()
    download(tmp_path/'d')
    assert complete(tmp_path/'d', made[1]) and time.time()-t >= 1 # Retry-After was honoured


@pytest.mark.parametrize('code', [429, 500])
def test_a_server_that_stays_busy(server, tmp_path, code):
    server.api += [dict(code=code)]*5
    assert f'Kaggle is busy ({code}) and 5 attempts' in refused(tmp_path/'d')
    server.faults += [dict(status=code)]*5
    assert f"Kaggle's storage is busy ({code}) and 5 attempts" in refused(tmp_path/'d')
    server.api += [dict(code=code, after=7200)]
    assert 'wait 120 minutes' in refused(tmp_path/'d')


def test_logins(server, made, tmp_path, capfd):
    home = tmp_path / 'home'
    with server.visit(home, 'planted-token-that-is-wrong'):
        assert 'login from KAGGLE_API_TOKEN (401)' in refused(tmp_path / 'd')
    with server.visit(home, None):
        assert 'No Kaggle login was found' in refused(tmp_path / 'd')
        os.environ |= dict(KAGGLE_USERNAME='tester', KAGGLE_KEY='planted-key')
        assert complete(download(tmp_path / 'pair'), made[1])
    with server.visit(home, None, KAGGLE_CONFIG_DIR=str(tmp_path / 'config')):
        (tmp_path / 'config').mkdir()
        (tmp_path / 'config/kaggle.json').write_text(json.dumps(dict(username='tester', key='planted-key')))
        os.chmod(tmp_path / 'config/kaggle.json', 0o644)
        assert complete(download(tmp_path / 'file'), made[1])
        (tmp_path / 'config/kaggle.json').write_text(json.dumps(dict(username='tester', key='planted-key\u2026')))
        assert 'characters that no login has' in refused(tmp_path / 'd')
    with server.visit(home, 'planted-token\nX-Evil: 1'):
        assert 'characters that no login has' in refused(tmp_path / 'd')
    with server.visit(home, VERBOSE='true', KAGGLE_API_TOKEN=TOKEN):
        assert complete(download(tmp_path / 'verbose'), made[1])
    assert not any(o in ''.join(capfd.readouterr()) for o in SECRETS)
    assert not any(
        o in p.read_bytes().decode('latin1') for p in (tmp_path / 'd').rglob('*') if p.is_file() for o in SECRETS
    )


def test_no_login_and_no_network(tmp_path):
    with KaggleServer(b'') as s: pass # nobody listens there any more
    with s.visit(tmp_path, None): assert 'No Kaggle login was found' in refused(tmp_path/'d')


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(room, 'PAUSE', 0)
    with KaggleServer(b'') as s: pass
    with s.visit(tmp_path): assert "Kaggle can't be reached and 5 attempts" in refused(tmp_path/'d')


def test_terms_and_unknown_data_sets(server, tmp_path):
    server.terms = False
    assert f'open https://www.kaggle.com/datasets/{DATASET} in a browser, sign in, accept the terms' in refused(
        tmp_path / 'd'
    )
    assert 'no data set nobody/nothing (404)' in refused(tmp_path / 'd', dataset='nobody/nothing')


def test_a_web_page_instead(server, tmp_path):
    server.faults += [dict(html=True)]
    assert 'sign in there with a browser' in refused(tmp_path/'d')


def test_a_store_keeps_the_archive(server, made, tmp_path):
    for n in range(2):
        download(tmp_path/f'd{n}', store=tmp_path/'drive')
        assert complete(tmp_path/f'd{n}', made[1]) and os.listdir(tmp_path/'drive') == ['kermany2018.zip']
    assert len(ranges(server)) == 1


def test_too_little_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda d: type('', (), dict(free=len(server.body)*2-1)))
    assert 'are needed' in refused(tmp_path/'d') and os.listdir(tmp_path/'d') == []


RUN = '''import sys
from oct_classify.data.download import download
from oct_classify.core import *
try: download(sys.argv[1])
except OctError as e: sys.exit(str(e))'''
LIMIT = '''import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (%d,)*2)
'''


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX resource limits')
@pytest.mark.parametrize('limit', [300_000, 2_000])
def test_a_disk_that_fills_up(server, made, tmp_path, limit):
    "In the middle of the archive, or of the scans: one sentence, and the next call goes on"
    more = [] if limit > 100_000 else [tmp_path / 'd/kermany2018.zip']
    for f in more:
        f.parent.mkdir()
        shutil.copy(made[0], f)
    got = subprocess.run([sys.executable, '-c', LIMIT % limit + RUN, tmp_path / 'd'], capture_output=True, text=True)
    assert (
        got.returncode == 1
        and got.stderr.splitlines()[-1].startswith('The disk is full')
        and 'Traceback' not in got.stderr
    ), got.stderr
    assert not (tmp_path / 'd/scans').exists() and not (tmp_path / 'd/.scans.part').exists()
    download(tmp_path / 'd')
    assert complete(tmp_path / 'd', made[1]) and (more or ranges(server)[-1] > 100_000)


@pytest.mark.skipif(
    os.name == 'nt' or getattr(os, 'geteuid', lambda: 1)() == 0, reason='no folder can be made unwritable for this user'
)
def test_unwritable_folder(server, made, tmp_path):
    download(tmp_path / 'full')
    for d in ('shut', 'full'):
        (tmp_path / d).mkdir(exist_ok=True)
        (tmp_path / d).chmod(0o500)
    assert 'may write' in refused(tmp_path / 'shut')
    assert download(tmp_path / 'full') == tmp_path / 'full'  # what is at hand may be read-only


def test_two_processes_at_once(server, made, tmp_path):
    server.rate = 200_000
    one = subprocess.Popen([sys.executable, '-c', RUN, tmp_path/'d'], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob('d/*.part')): time.sleep(.02)
    assert 'Another process is using' in refused(tmp_path/'d')
    assert one.wait() == 0, one.stderr.read()
    one.stderr.close()
    assert complete(tmp_path/'d', made[1])


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')
def test_ctrl_c_resumes(server, made, tmp_path):
    import signal

    server.rate = 300_000
    p = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n' + RUN,
            tmp_path / 'd',
        ],
        stderr=subprocess.DEVNULL,
    )
    while not [f for f in tmp_path.glob('d/*.part') if f.stat().st_size > 200_000]:
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    assert p.wait() != 0
    server.rate = 0
    download(tmp_path / 'd')
    assert complete(tmp_path / 'd', made[1]) and ranges(server)[-1] >= 200_000


def work(variables, dest):
    "A download in a process of its own"
    os.environ.update(variables)
    quiet()
    download(dest)


def stage(dest):
    "Where a killed process was"
    names = {p.name for p in dest.rglob('*') if 'scans' not in p.parent.parts} if dest.exists() else set()
    return (
        'done'
        if 'scans' in names and 'kermany2018.zip' not in names
        else 'unpack'
        if '.scans.part' in names or 'kermany2018.zip' in names
        else 'download'
        if '.kermany2018.zip.part' in names
        else 'start'
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')
def test_killed_at_twenty_random_moments(tmp_path):
    "kill -9 anywhere between the first byte and the last file; the next call always ends complete and verified"
    want = archive(tmp_path/'a.zip', n=15, size=40_000)
    spawn = multiprocessing.get_context('forkserver') # the client is imported once, not twenty times
    spawn.set_forkserver_preload(['pytest', 'kagglesdk.kaggle_client', 'oct_classify.data.download'])
    size, rnd, hit = (tmp_path/'a.zip').stat().st_size, random.Random(7), Counter()

    def reached(dest, moment):
        "Is the download (moment 0 to 1) or the unpacking (1 to 2) as far as that?"
        part = dest/'.kermany2018.zip.part'
        if moment < 1: return part.exists() and part.stat().st_size >= moment*size
        return (dest/'.scans.part'/list(want)[int((moment-1)*len(want))]).exists()

    with KaggleServer((tmp_path/'a.zip').read_bytes()) as server, server.visit(tmp_path):
        for i in range(20):
            dest, moment, server.rate = tmp_path/f'd{i}', (i + rnd.random())/10, 12_000_000
            p = spawn.Process(target=work, args=(dict(os.environ), dest))
            p.start()
            while p.is_alive() and not reached(dest, moment): time.sleep(.0002)
            p.kill()
            p.join()
            hit[stage(dest)] += 1
            server.rate = 0
            download(dest)
            assert complete(dest, want), (i, moment)
            shutil.rmtree(dest)
    print(f'Killed in {dict(hit)}; each time the next call ended complete.')
    assert hit['download'] >= 5 and hit['unpack'] >= 5, hit


def die_before(n, variables, dest):
    "A download that ends, as by kill -9, before it renames or deletes something for the `n`th time"
    def count(real):
        def f(*args, **kwargs):
            nonlocal n
            n -= 1
            if not n: os._exit(9)
            return real(*args, **kwargs)
        return f
    os.replace, os.unlink = count(os.replace), count(os.unlink)
    work(variables, dest)


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX processes')
def test_killed_before_each_rename_and_deletion(server, tmp_path):
    "The moments that a clock would miss"
    want = archive(tmp_path/'a.zip', n=2)
    server.change((tmp_path/'a.zip').read_bytes())
    spawn = multiprocessing.get_context('forkserver')
    for n in range(1, 20):
        dest = tmp_path/f'd{n}'
        p = spawn.Process(target=die_before, args=(n, dict(os.environ), dest))
        p.start()
        p.join()
        download(dest)
        assert complete(dest, want), (n, os.listdir(dest))
        if p.exitcode == 0: break
    print(f'{n-1} moments, all complete on the next call.')
    assert p.exitcode == 0 and n > 6


@pytest.mark.parametrize('why', ['leads outside', 'is a link', 'would unpack'])
def test_one_hostile_member(server, made, tmp_path, why):
    "Refused, named, and nothing unpacked, although all others are good"
    bad = tmp_path / 'bad.zip'
    shutil.copy(made[0], bad)
    name = '../../evil.jpeg' if 'outside' in why else 'train/CNV/evil.jpeg'
    m = zipfile.ZipInfo(name)
    m.compress_type = zipfile.ZIP_DEFLATED
    if 'link' in why:
        m.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(bad, 'a') as z:
        z.writestr(m, bytes(10**8) if 'unpack' in why else '/etc/passwd')
    text = refused(tmp_path / 'd', zip=bad)
    assert why in text and name in text and 'nothing was unpacked' in text
    server.change(bad.read_bytes())
    assert name in refused(tmp_path / 'e')
    assert (
        os.listdir(tmp_path / 'd') == []
        and os.listdir(tmp_path / 'e') == ['kermany2018.zip']
        and not list(tmp_path.rglob('evil*'))
    )


def test_a_member_that_lies_about_its_size(made, tmp_path):
    "The directory says 10 bytes, the data unpack to 100 MB: reading stops at 10, and the CRC-32 tells"
    bad = tmp_path/'bad.zip'
    with zipfile.ZipFile(bad, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('train/CNV/CNV-1-1.jpeg', bytes(10**8))
    data = bad.read_bytes()
    bad.write_bytes(data.replace((10**8).to_bytes(4, 'little'), (10).to_bytes(4, 'little')))
    with pytest.raises(OctError, match='damaged'): unpack(bad, tmp_path/'d')
    assert os.listdir(tmp_path) == ['bad.zip']


def test_the_official_command_line_takes_this_server_for_kaggle(server, made, tmp_path):
    "What the tests above rest on: the `kaggle` command itself downloads from it"
    got = subprocess.run(
        [sys.executable, '-m', 'kaggle.cli', 'datasets', 'download', DATASET, '-p', str(tmp_path / 'k')],
        capture_output=True,
        text=True,
    )
    assert (tmp_path / 'k/kermany2018.zip').read_bytes() == made[0].read_bytes(), got.stdout + got.stderr
    assert any(o['url'] == STORAGE for o in server.log)


def test_neither_torch_nor_fastai_nor_the_client_is_imported():
    heavy = ('torch', 'fastai', 'kaggle', 'kagglesdk')
    code = f'import sys, oct_classify.data.download; print([o for o in {heavy} if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
