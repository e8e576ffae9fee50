"""The app over an hour of reloads, closed tabs, killed browsers and killed kernels: do memory and files go back to what
they were at the start?

    python bench/app.py [--minutes 60] [--pause 20] [--seed 0]

Serves a tiny bundle and does one thing every `--pause` seconds in Chromium: a scan is sent, the page is reloaded, a
second tab is opened and closed, the browser is killed, a kernel is killed. Every few minutes it prints the number of
kernels, the memory (PSS) of server and kernels, and the files in the temporary folder. It ends with 1 unless, with
every page closed, no kernel and no file more is left than before the first page, and the server's own memory has grown
by less than 40 MB. Linux, Chromium, chromedriver and selenium are needed.
"""
import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from oct_classify.core import CLASSES
from oct_classify.inference.bundle import save_bundle
from oct_classify.phantoms.phantom import Phantom
from oct_classify.training.network import network

GROWTH = 40  # MB by which the server may have grown
GONE = 90  # seconds after which nothing may be left of a page that is closed
SERVE = 'import sys; from oct_classify.app import serve; serve(sys.argv[1], 8890, browser=False)'


def kernels(server):
    "Process numbers of what the server started"
    return [int(k) for k in Path(f'/proc/{server}/task/{server}/children').read_text().split()]


def megabytes(pid, kind='Pss'):
    "Memory of a process: with its share of libraries, or 'Anonymous', what it wrote itself"
    try: text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    except OSError: return 0  # it has ended meanwhile
    return int(re.search(rf'^{kind}:\s+(\d+)', text, re.MULTILINE)[1]) / 1024


class Run:
    "A served app, Chromium, and what can happen between them"

    def __init__(self, folder):
        self.folder, self.temp = folder, folder/'tmp'
        self.temp.mkdir()
        config = dict(
            arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole', thresholds=dict(urgent=0.5))
        save_bundle(folder/'bundle', network('resnet10t', 4, (64, 64)), config)
        Image.fromarray(Phantom(5, 'CNV', 0.75, patient=5, shape=(124, 128)).image).save(folder/'CNV-5-1.png')
        with open(folder/'log', 'wb') as log:
            self.server = subprocess.Popen([sys.executable, '-c', SERVE, folder/'bundle'], stdout=log, stderr=log,
                env=os.environ | dict(TMPDIR=str(self.temp), OMP_NUM_THREADS='1'))
        self.until(lambda: 'token=' in (folder/'log').read_text())
        self.url = re.search(r'http://\S+', (folder/'log').read_text())[0]

    def until(self, f, seconds=90):
        end = time.monotonic() + seconds
        while not f():
            if time.monotonic() > end: raise TimeoutError(f'This did not come within {seconds} s: {f}')
            time.sleep(0.5)

    def open(self):
        "A browser with the page"
        from selenium import webdriver
        o = webdriver.ChromeOptions()
        o.binary_location = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))))
        for a in ('--headless', '--no-sandbox', '--disable-gpu', '--no-first-run'): o.add_argument(a)
        self.d = webdriver.Chrome(options=o, service=webdriver.ChromeService(shutil.which('chromedriver')))
        self.d.get(self.url)
        self.until(self.ready)

    def ready(self):
        buttons = self.d.find_elements('css selector', 'button.jupyter-button')
        return any('Upload a scan' in o.text for o in buttons)

    def reload(self):
        self.d.refresh()
        self.until(self.ready)

    def upload(self):
        self.d.execute_script("""HTMLInputElement.prototype.click = function(){document.querySelectorAll(
            'input[type=file]').forEach(o => o.remove()); document.body.appendChild(this)}""")
        self.d.find_element('css selector', 'button.jupyter-button').click()
        self.until(lambda: self.d.find_elements('css selector', 'input[type=file]'))
        self.d.find_element('css selector', 'input[type=file]').send_keys(str(self.folder/'CNV-5-1.png'))
        self.until(lambda: 'CNV-5-1.png' in self.d.find_element('tag name', 'body').text)

    def second_tab(self):
        first = self.d.current_window_handle
        self.d.switch_to.new_window('tab')
        self.d.get(self.url)
        self.until(self.ready)
        self.upload()
        self.d.close()
        self.d.switch_to.window(first)

    def kill_browser(self):
        children = Path(f'/proc/{self.d.service.process.pid}/task/{self.d.service.process.pid}/children').read_text()
        for pid in children.split(): os.kill(int(pid), signal.SIGKILL)
        self.d.service.stop()
        self.open()

    def kill_kernel(self):
        os.kill(kernels(self.server.pid)[-1], signal.SIGKILL)
        self.reload()

    def state(self):
        "Kernels, MB of all, MB that the server wrote itself, files"
        running = kernels(self.server.pid)
        every = sum(map(megabytes, [self.server.pid, *running]))
        count = sum(p.is_file() for p in self.temp.rglob('*'))
        return len(running), every, megabytes(self.server.pid, 'Anonymous'), count


def happen(run, a):
    "What happens until the time is over; gives how often each was done"
    rng, done, end, shown = random.Random(a.seed), {}, time.monotonic() + 60*a.minutes, 0
    while time.monotonic() < end:
        what = rng.choice(['upload'] * 3 + ['reload'] * 3 + ['second_tab', 'kill_browser', 'kill_kernel'])
        getattr(run, what)()
        done[what] = done.get(what, 0) + 1
        if time.monotonic() - shown > 60*max(1, a.minutes / 12):
            shown = time.monotonic()
            show(f'{(shown - end)/60 + a.minutes:.0f} min', run.state())
        time.sleep(a.pause)
    return done


def show(when, state):
    print(f'{when:>12} {state[0]:>8} {state[1]:>8.0f} {state[2]:>10.0f} {state[3]:>6}', flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--minutes', type=float, default=60)
    ap.add_argument('--pause', type=float, default=20)
    ap.add_argument('--seed', type=int, default=0)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as d:
        run = Run(Path(d))
        print(f"{'':>12} {'kernels':>8} {'MB':>8} {'server MB':>10} {'files':>6}")
        run.open()  # once before the start, as the server loads much with its first page
        run.d.quit()
        time.sleep(GONE)
        start = run.state()
        show('start', start)
        run.open()
        done = happen(run, a)
        run.d.quit()
        time.sleep(GONE)
        end = run.state()
        show('end', end)
        print(', '.join(f'{n} x {what}' for what, n in sorted(done.items())))
        run.server.terminate()
        run.server.wait(60)
        left = list(run.temp.iterdir())
    good = end[0] == start[0] == 0 and end[3] <= start[3] and end[2] - start[2] < GROWTH and not left
    print('The end is the start.' if good else f'Something is left: {left}')
    sys.exit(not good)


if __name__ == '__main__':
    main()
