"""The app in a real browser: a scan goes in through the file button, and what the page shows is what
`OctModel.predict` says."""
import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from oct_classify.inference.bundle import save_bundle
from oct_classify.core import CLASSES
from oct_classify.phantoms.phantom import Phantom

pytestmark = pytest.mark.xdist_group('app')  # one process for all: what the fixtures make is made once

OPTIONS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
)
EVIL = '<img src=x onerror=window.hit=1>.png'


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    from oct_classify.training.network import network

    config = dict(
        arch='resnet10t',
        classes=list(CLASSES),
        size=[64, 64],
        view='whole',
        thresholds=dict(urgent=0.5, confidence=0.1),
    )
    return save_bundle(tmp_path_factory.mktemp('app') / 'bundle', network('resnet10t', 4, (64, 64)), config)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    "A phantom of each of two classes, a text file that is called a picture, and a zip of the phantoms"
    d = tmp_path_factory.mktemp('scans')
    for c in ('CNV', 'NORMAL'):
        Image.fromarray(Phantom(5, c, 0.75, patient=5, shape=(124, 128)).image).save(d / f'{c}-5-1.png')
    shutil.copy(d / 'CNV-5-1.png', d / EVIL)
    (d / 'words.png').write_text('this is no picture ' * 640_000)  # 12 MB, more than a websocket takes by default
    with zipfile.ZipFile(d / 'two.zip', 'w') as z:
        for c in ('CNV', 'NORMAL'):
            z.write(d / f'{c}-5-1.png', f'{c}-5-1.png')
    return d


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start(bundle, log):
    "The app in a process of its own, and its address"
    code = 'import sys; from oct_classify.app import serve; serve(sys.argv[1], int(sys.argv[2]), browser=False)'
    with open(log, 'wb') as f:
        p = subprocess.Popen(
            [sys.executable, '-c', code, str(bundle), str(free_port())],
            stdout=f,
            stderr=f,
            env=os.environ | dict(OMP_NUM_THREADS='1'),
        )
    for _ in range(300):
        if m := re.search(rb'http://127\.0\.0\.1:\d+/\?token=[\w-]+', Path(log).read_bytes()):
            return p, m[0].decode()
        if p.poll() is not None:
            break
        time.sleep(0.2)
    p.kill()
    pytest.fail(f'The app did not start: {Path(log).read_text()}')


@pytest.fixture(scope='module')
def served(bundle, tmp_path_factory):
    for o in ('voila', 'ipywidgets'): pytest.importorskip(o)
    p, url = start(bundle, tmp_path_factory.mktemp('log')/'log')
    yield url
    p.terminate()
    p.wait(30)


class Page:
    "The app in Chromium"

    def __init__(self, driver):
        self.d = driver

    def all(self, css):
        return self.d.find_elements('css selector', css)

    def wait(self, f, seconds=40):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.d, seconds, 0.1).until(lambda d: f())

    def shown(self, css, text=''):
        "The first visible element that holds a text, as soon as there is one"

        def look():
            try:
                return next((o for o in self.all(css) if o.is_displayed() and text in o.text), None)
            except Exception:
                return None  # it was replaced meanwhile

        return self.wait(look)

    def file_button(self, text):
        "The input behind an upload button, which the page itself never attaches"
        self.d.execute_script(
            """HTMLInputElement.prototype.click = function(){document.querySelectorAll('input[type=file]').forEach(o =>
            o.remove()); document.body.appendChild(this)}"""
        )
        self.shown('button.jupyter-button', text).click()
        return self.wait(lambda: self.all('input[type=file]'))[0]

    def send(self, button, *files):
        self.file_button(button).send_keys('\n'.join(map(str, files)))

    def tab(self, text):
        self.shown('[role=tab]', text).click()


@pytest.fixture(scope='module')
def page(served, tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver')
    chrome, driver = [
        next(filter(None, map(shutil.which, o)), None)
        for o in (('chromium', 'chromium-browser', 'google-chrome'), ('chromedriver',))
    ]
    if not (chrome and driver):
        pytest.skip('chromium or chromedriver is missing')
    o = webdriver.ChromeOptions()
    o.binary_location = chrome
    for a in (*OPTIONS, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}'):
        o.add_argument(a)
    o.set_capability('goog:loggingPrefs', dict(performance='ALL'))
    d = webdriver.Chrome(options=o, service=webdriver.ChromeService(driver))
    try:
        d.get(served)
        p = Page(d)
        p.shown('button.jupyter-button', 'Upload a scan')
        yield p
    finally:
        d.quit()


def probabilities(page):
    return {o.get_attribute('data-class'): float(o.get_attribute('data-p')) for o in page.all('.bars li')}


def test_upload_is_answered_as_predict_does(page, bundle, scans):
    from oct_classify.inference.model import OctModel
    want = OctModel.load(bundle, engine='torch').predict([scans/'CNV-5-1.png']).iloc[0]
    page.send('Upload a scan', scans/'CNV-5-1.png')
    head = page.shown('.head', 'CNV-5-1.png')
    assert head.get_attribute('data-predicted') == want.predicted and want.predicted in head.text
    assert probabilities(page) == pytest.approx({c: want[f'p_{c}'] for c in CLASSES}, abs=1e-5)
    assert page.all('.urgent')[0].get_attribute('data-urgent') == ('yes' if want.urgent else 'no')
    assert page.all('.oct figure img')[0].get_property('naturalWidth') == 128
    assert 'research use only' in page.d.find_element('tag name', 'body').text


def test_a_file_that_is_no_picture_costs_a_sentence(page, scans):
    page.send('Upload a scan', scans/'words.png')
    head = page.shown('.head', 'words.png')
    assert 'No answer' in head.text and 'The file is not an image that can be read.' in head.text
    assert not page.all('.bars') and 'Traceback' not in page.d.page_source and 'oct-app-' not in page.d.page_source


def test_a_name_is_shown_and_not_obeyed(page, scans):
    page.send('Upload a scan', scans/EVIL)
    page.shown('.head', '<img src=x onerror=')
    assert page.d.execute_script('return window.hit') is None


def test_a_zip_is_leafed_through(page, scans):
    page.send('Upload a scan', scans/'two.zip')
    page.shown('.note', 'of 2, called two.zip/')
    assert 'two.zip/' in page.shown('.head').text and page.shown('.widget-slider', 'B-scan')


def test_many_scans_and_their_csv(page, bundle, scans):
    from oct_classify.inference.model import OctModel

    files = [scans / o for o in ('CNV-5-1.png', 'NORMAL-5-1.png', 'words.png')]
    want = OctModel.load(bundle, engine='torch').predict(files)
    page.tab('Many scans')
    page.send('Upload scans', *files)
    link = page.shown('a.get', 'Download all 3 rows')
    kind, text = link.get_attribute('href').split(',', 1)
    rows = list(csv.DictReader(io.StringIO(unquote(text))))
    assert kind == 'data:text/csv;charset=utf-8' and link.get_attribute('download') == 'predictions.csv'
    assert [o['path'] for o in rows] == [f.name for f in files] and [o['predicted'] for o in rows] == list(
        want.predicted
    )
    assert [float(o['p_CNV']) for o in rows[:2]] == pytest.approx(list(want.p_CNV[:2]), abs=1e-5) and rows[2][
        'p_CNV'
    ] == ''
    assert len(page.all('.oct tbody tr')) == 3
    page.shown('input[type=text]').send_keys(str(scans / 'nowhere'))
    page.shown('button.jupyter-button', 'Read this folder').click()
    assert 'check the path' in page.shown('.note.bad').text


def test_the_page_asks_nobody_but_its_server(page, served):
    "Over everything that the tests above did"
    log = [json.loads(e['message'])['message'] for e in page.d.get_log('performance')]
    asked = [m['params']['request']['url'] for m in log if m['method'] == 'Network.requestWillBeSent'] + [
        m['params']['url'] for m in log if m['method'] == 'Network.webSocketCreated'
    ]
    hosts = {urlsplit(u).netloc for u in asked if urlsplit(u).scheme in ('http', 'https', 'ws', 'wss')}
    assert hosts == {urlsplit(served).netloc}


def test_without_the_token_there_is_no_page(served):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *a): return None
    with pytest.raises(urllib.error.HTTPError) as e: urllib.request.build_opener(Stay).open(served.split('?')[0])
    assert e.value.code == 302 and '/login' in e.value.headers['Location']
    assert "default-src 'self'" in e.value.headers['Content-Security-Policy']


@pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')
def test_ctrl_c_ends_it_cleanly(bundle, tmp_path):
    for o in ('voila', 'ipywidgets'):
        pytest.importorskip(o)
    os.environ['TMPDIR'], was = str(tmp_path), os.environ.get('TMPDIR')
    try:
        p, url = start(bundle, tmp_path / 'log')
    finally:
        os.environ.pop('TMPDIR') if was is None else os.environ.update(TMPDIR=was)
    assert list(tmp_path.glob('oct-app-*'))
    p.send_signal(signal.SIGINT)
    assert p.wait(30) == 0 and (tmp_path / 'log').read_text().splitlines() == [
        f'The app is at {url} until you press Ctrl-C.',
        'The app is closed.',
    ]
    assert not list(tmp_path.glob('oct-app-*'))
