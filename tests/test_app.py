"""The app in a real browser: a scan goes in through the file button, and what the page shows is what
`OctModel.predict` says."""
import contextlib
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


def test_the_page_says_what_metrics_json_says(tmp_path, no_onnx):
    from oct_classify.app import track_record
    from oct_classify.phantoms.phantom import phantom_folder
    from oct_classify.pipeline import run

    data = phantom_folder(tmp_path / 'phantoms', 8, 0, 4, shape=(124, 128))
    run(data, tmp_path / 'out', arch='resnet10t', size=64, weights='none', epochs=1)
    m = json.loads((tmp_path / 'out/metrics.json').read_text())
    v = {k: f'{100 * x:.1f}' for k, x in m['test']['accuracy'].items()}
    assert track_record(tmp_path / 'out/bundle') == (
        f'Trained on {m["scans"]["train"]} scans; right on {v["value"]} % (95 % interval {v["low"]}–{v["high"]}) '
        f'of {m["scans"]["test"]} test scans.'
    )


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start(bundle, log, settings='pass', browser=False, **env):
    "The app in a process of its own, and its address; `settings` are statements that change its module `a`"
    if pytest.importorskip('ipywidgets').__version__.startswith('7'): pytest.skip('needs ipywidgets 8')
    code = (
        'import signal, sys, oct_classify.app as a; '
        'signal.signal(signal.SIGINT, signal.default_int_handler); '  # which a shell's background job ignores
        f'{settings}; a.serve(sys.argv[1], int(sys.argv[2]), browser={browser})'
    )
    with open(log, 'wb') as f:
        p = subprocess.Popen(
            [sys.executable, '-c', code, str(bundle), str(free_port())],
            stdout=f,
            stderr=f,
            env=os.environ | dict(OMP_NUM_THREADS='1') | env,
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
            o.remove()); this.value = ''; document.body.appendChild(this)}"""
        )
        self.shown('button.jupyter-button', text).click()
        return self.wait(lambda: self.all('input[type=file]'))[0]

    def send(self, button, *files):
        self.file_button(button).send_keys('\n'.join(map(str, files)))

    def tab(self, text):
        self.shown('[role=tab], .lm-TabBar-tab', text).click()


@pytest.fixture(scope='module')
def driver(tmp_path_factory):
    "A page in Chromium that shows nothing yet"
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
    yield Page(d)
    d.quit()


@pytest.fixture(scope='module')
def page(served, driver):
    driver.d.get(served)
    driver.shown('button.jupyter-button', 'Upload a scan')
    return driver


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
    p, url = start(bundle, tmp_path / 'log', TMPDIR=str(tmp_path))
    assert list(tmp_path.glob('oct-app-*'))
    p.send_signal(signal.SIGINT)
    assert p.wait(30) == 0 and (tmp_path / 'log').read_text().splitlines() == [
        f'The app runs at {url} until you press Ctrl-C.',
        'The app is closed.',
    ]
    assert not list(tmp_path.glob('oct-app-*'))


posix = pytest.mark.skipif(os.name == 'nt', reason='needs POSIX signals')


def kernels(p):
    "Process numbers of what the app started"
    return [c.pid for c in pytest.importorskip('psutil').Process(p.pid).children()]


def scans_kept(folder):
    return list(Path(folder).rglob('CNV-5-1.png'))


@contextlib.contextmanager
def own_page(page, bundle, folder, settings='pass'):
    "An app of its own, its files in a folder, with its page in another tab: process and address"
    p, url = start(bundle, folder / 'log', settings, TMPDIR=str(folder))
    first = page.d.current_window_handle
    page.d.switch_to.new_window('tab')
    try:
        page.d.get(url)
        page.shown('button.jupyter-button', 'Upload a scan')
        yield p, url
    finally:
        if page.d.current_window_handle != first: page.d.close()
        page.d.switch_to.window(first)
        p.kill()
        p.wait(30)


def test_a_page_that_goes_ends_its_kernel_and_its_files(page, bundle, scans, tmp_path):
    with own_page(page, bundle, tmp_path, 'a.ABANDONED = 1000') as (p, _):
        for _ in range(3):
            page.send('Upload a scan', scans / 'CNV-5-1.png')
            page.shown('.head', 'CNV-5-1.png')
            page.d.refresh()
            page.shown('button.jupyter-button', 'Upload a scan')
        page.wait(lambda: len(kernels(p)) == 1)
        page.d.get('about:blank')
        page.wait(lambda: not kernels(p))
        assert not scans_kept(tmp_path)


@pytest.mark.slow
def test_a_kernel_without_a_page_ends_and_one_with_a_page_stays(page, bundle, scans, tmp_path):
    with own_page(page, bundle, tmp_path, 'a.ABANDONED = 5') as (p, url):
        kept = kernels(p)
        jar = urllib.request.HTTPCookieProcessor()
        urllib.request.build_opener(jar).open(url).read()  # as a page that never connects
        assert len(kernels(p)) == 2
        page.send('Upload a scan', scans / 'CNV-5-1.png')
        page.shown('.head', 'CNV-5-1.png')
        page.wait(lambda: len(kernels(p)) == 1)
        assert kernels(p) == kept and scans_kept(tmp_path) and not page.all('#oct-note')
        page.d.close()  # as a browser that is killed, it says nothing
        page.d.switch_to.window(page.d.window_handles[0])
        page.wait(lambda: not kernels(p))
        assert not scans_kept(tmp_path) and len((tmp_path / 'log').read_text().splitlines()) == 1


@posix
def test_a_killed_kernel_takes_its_files_along_and_the_page_says_so(page, bundle, scans, tmp_path):
    with own_page(page, bundle, tmp_path) as (p, _):
        page.send('Upload a scan', scans / 'CNV-5-1.png')
        page.shown('.head', 'CNV-5-1.png')
        assert scans_kept(tmp_path)
        os.kill(kernels(p)[0], signal.SIGKILL)
        assert 'has ended: reload the page' in page.shown('#oct-note').text
        assert not scans_kept(tmp_path) and not kernels(p)
        page.d.refresh()
        page.send('Upload a scan', scans / 'CNV-5-1.png')
        page.shown('.head', 'CNV-5-1.png')
        assert not page.all('#oct-note') and len((tmp_path / 'log').read_text().splitlines()) == 1


@posix
@pytest.mark.parametrize('name', [pytest.param('SIGHUP', marks=pytest.mark.slow), 'SIGTERM'])
def test_a_signal_ends_kernels_and_files_and_the_page_says_so(name, page, bundle, scans, tmp_path):
    with own_page(page, bundle, tmp_path) as (p, _):
        page.send('Upload a scan', scans / 'CNV-5-1.png')
        page.shown('.head', 'CNV-5-1.png')
        was = kernels(p)
        p.send_signal(getattr(signal, name))
        assert p.wait(30) == 0 and (tmp_path / 'log').read_text().splitlines()[1:] == ['The app is closed.']
        assert not any(map(pytest.importorskip('psutil').pid_exists, was)) and not list(tmp_path.glob('oct-app-*'))
        assert 'start oct-classify app again' in page.shown('#oct-note').text


@posix
@pytest.mark.slow
def test_what_a_killed_app_left_is_swept_by_the_next(page, bundle, scans, tmp_path):
    with own_page(page, bundle, tmp_path) as (p, _):
        page.send('Upload a scan', scans / 'CNV-5-1.png')
        page.shown('.head', 'CNV-5-1.png')
        was = kernels(p)
        p.kill()
        p.wait(30)
        page.wait(lambda: not any(map(pytest.importorskip('psutil').pid_exists, was)))
        assert scans_kept(tmp_path)
        with contextlib.ExitStack() as undo:
            for n in (1, 2):  # one sweeps; the other sees that the first is alive
                undo.callback(start(bundle, tmp_path / f'log{n}', TMPDIR=str(tmp_path))[0].kill)
                assert len(list(tmp_path.glob('oct-app-*'))) == n and not scans_kept(tmp_path)


@posix
def test_the_browser_is_told_a_file_and_no_token(bundle, tmp_path):
    for o in ('voila', 'ipywidgets'): pytest.importorskip(o)
    told, script = tmp_path / 'told', tmp_path / 'browser'
    script.write_text(f'#!/bin/sh\necho "$@" > {told}')
    script.chmod(0o700)
    p, url = start(bundle, tmp_path / 'log', browser=True, TMPDIR=str(tmp_path), BROWSER=str(script))
    try:
        for _ in range(100):
            if told.exists() and told.read_text(): break
            time.sleep(0.1)
        file = Path(unquote(urlsplit(told.read_text().strip()).path))
        assert 'token' not in told.read_text() and url.split('token=')[1] not in told.read_text()
        assert url in file.read_text() and file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    finally:
        p.kill()
        p.wait(30)


def test_files_that_are_too_large_cost_a_sentence(page, bundle, scans, tmp_path):
    for n in range(2): (tmp_path / f'{n}.png').write_bytes(bytes(700_000))
    with own_page(page, bundle, tmp_path, 'a.LARGEST, a.AT_ONCE = 1_000_000, 1_200_000'):
        page.send('Upload a scan', scans / 'words.png')
        assert page.shown('#oct-note').text == 'words.png is over 1.0 MB: use oct-classify predict for it.'
        page.send('Upload a scan', scans / 'CNV-5-1.png')
        page.shown('.head', 'CNV-5-1.png')
        assert not page.all('#oct-note')
        page.tab('Many scans')
        page.send('Upload scans', tmp_path / '0.png', tmp_path / '1.png')
        assert 'over 1.2 MB together: send fewer' in page.shown('#oct-note').text
        page.send('Upload scans', tmp_path / '0.png')
        page.shown('.oct tbody tr', '0.png')
        assert not page.all('#oct-note')


@contextlib.contextmanager
def classic_notebook(cell, folder):
    "Notebook 6 with a notebook of one cell in a folder: its address"
    kernel = dict(name='python3', display_name='Python 3', language='python')
    cell = dict(cell_type='code', id='app', metadata={}, execution_count=None, outputs=[], source=cell)
    notebook = dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (folder / 'app.ipynb').write_text(json.dumps(notebook))
    port = free_port()
    told = ['--no-browser', '--allow-root', f'--port={port}', '--NotebookApp.token=', f'--notebook-dir={folder}']
    kept = {f'JUPYTER_{o}_DIR': str(folder / o) for o in ('CONFIG', 'DATA', 'RUNTIME')}
    with open(folder / 'log', 'wb') as f:
        command = [sys.executable, '-m', 'notebook', *told]
        p = subprocess.Popen(command, stdout=f, stderr=f, env=os.environ | dict(OMP_NUM_THREADS='1') | kept)
    try:
        for _ in range(300):
            with socket.socket() as s:
                if s.connect_ex(('127.0.0.1', port)) == 0: break
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}/notebooks/app.ipynb'
    finally:
        p.terminate()
        p.wait(30)


def test_an_older_ipywidgets_is_refused(bundle, monkeypatch):
    from oct_classify.app import serve
    from oct_classify.core import OctError

    for o in ('voila', 'ipywidgets'): pytest.importorskip(o)
    monkeypatch.setattr('importlib.metadata.version', lambda name: '7.7.1')
    with pytest.raises(OctError, match="pip install 'ipywidgets>=8'"): serve(bundle)


def test_the_classic_notebook_takes_uploads_with_ipywidgets_7(driver, bundle, scans, tmp_path):
    "As in Colab, whose front end is of version 7"
    from oct_classify.inference.model import OctModel

    for name, major in (('ipywidgets', '7'), ('notebook', '6')):
        if pytest.importorskip(name).__version__.split('.')[0] != major:
            pytest.skip(f'needs {name} {major}')
    want = OctModel.load(bundle, engine='torch').predict([scans / 'CNV-5-1.png']).iloc[0]
    with classic_notebook(f'from oct_classify.app import app\napp({str(bundle)!r}, {str(scans)!r})', tmp_path) as url:
        driver.d.get(url)
        ready = 'return !!window.Jupyter?.notebook?.kernel?.widget_manager && Jupyter.notebook.kernel.is_connected()'
        driver.wait(lambda: driver.d.execute_script(ready))
        for n in range(1, 4):  # a front end that has just started may drop what it shows
            driver.d.execute_script('Jupyter.notebook.execute_all_cells()')
            number = 'return Jupyter.notebook.get_cells()[0].input_prompt_number'
            driver.wait(lambda: driver.d.execute_script(number) == n)
            time.sleep(1)
            if driver.all('button.jupyter-button'): break
        for _ in range(2):  # the same file twice
            driver.send('Upload a scan', scans / 'CNV-5-1.png')
            driver.shown('.head', 'CNV-5-1.png')
            assert probabilities(driver) == pytest.approx({c: want[f'p_{c}'] for c in CLASSES}, abs=1e-5)
            driver.send('Upload a scan', scans / 'two.zip')
            driver.shown('.note', 'of 2, called two.zip/')
        driver.tab('Many scans')
        driver.send('Upload scans', scans / 'CNV-5-1.png', scans / 'NORMAL-5-1.png')
        driver.shown('a.get', 'Download all 2 rows')
        assert not driver.all('.output_stderr')
        driver.d.execute_script('window.onbeforeunload = null')
