"""A server on loopback that speaks the part of Kaggle's API that a download uses, with faults on demand.

    with KaggleServer(archive) as server, server.visit(home):
        server.faults += [dict(cut=1000), dict(status=503, after=0)]
        download(...)

The official client talks plain http to `localhost` when KAGGLE_API_ENVIRONMENT is LOCALHOST, always on port 80. So the
server plays the proxy that the environment names, on a free port: whatever host the client wants, it reaches this one.
Nothing can get past it: https requests come as CONNECT, which it refuses and logs.
"""
import base64
import contextlib
import hashlib
import json
import os
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch
from urllib.parse import urlsplit

DATASET = 'paultimothymooney/kermany2018'
TOKEN = 'KGAT_planted-token'
STORAGE = 'http://storage.example/bundle/archive.zip?X-Goog-Signature=planted-signature'
MESSAGES = {
    401: 'Unauthenticated',
    403: "Permission 'datasets.get' was denied",
    404: 'Not found',
    429: 'Too many requests',
    500: 'Internal error',
}
VARIABLES = (
    'KAGGLE_USERNAME',
    'KAGGLE_KEY',
    'KAGGLE_API_TOKEN',
    'KAGGLE_CONFIG_DIR',
    'XDG_CONFIG_HOME',
    'VERBOSE',
    'VERBOSE_OUTPUT',
    'no_proxy',
    'NO_PROXY',
    'HTTP_PROXY',
    'HTTPS_PROXY',
    'ALL_PROXY',
    'all_proxy',
)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def note(self):
        h = self.headers
        self.server.log.append(
            dict(method=self.command, url=self.path, range=h.get('Range'), login=h.get('Authorization'))
        )

    def do_CONNECT(self):
        self.note()
        self.send_error(403)

    def reply(self, code, body=b'', **headers):
        self.send_response(code)
        for k, v in {'Content-Length': len(body), **headers}.items():
            self.send_header(k.replace('_', '-'), v)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code, after=None):
        more = {} if after is None else {'Retry-After': after}
        self.reply(
            code,
            json.dumps(dict(code=code, message=MESSAGES.get(code, 'Error'))).encode(),
            Content_Type='application/json',
            **more,
        )

    def do_POST(self):
        self.note()
        want = json.loads(self.rfile.read(int(self.headers['Content-Length'])) or '{}')
        s = self.server
        if s.api:
            return self.refuse(**s.api.popleft())
        if urlsplit(self.path).path != '/api/v1/datasets.DatasetApiService/DownloadDataset':
            return self.metadata()
        if self.headers.get('Authorization') not in s.logins:
            return self.refuse(401)
        if f"{want.get('ownerSlug')}/{want.get('datasetSlug')}" != DATASET:
            return self.refuse(404)
        if not s.terms:
            return self.refuse(403)
        self.reply(302, Location=STORAGE)

    def metadata(self):
        "Other questions that the official command line asks"
        known = 'IntrospectToken' in self.path and self.headers.get('Authorization') in self.server.logins
        self.reply(
            200,
            json.dumps(dict(active=True, username='tester') if known else {}).encode(),
            Content_Type='application/json',
        )

    def do_GET(self):
        self.note()
        asked = self.headers.get('Range')
        # without Range it is the look at the address that the client takes: faults wait for the transfer itself
        fault = self.server.faults.popleft() if asked and self.server.faults else {}
        with contextlib.suppress(ConnectionError):
            self.send_archive(asked, **fault)
        self.close_connection = True

    def send_archive(
        self, asked, status=None, after=None, cut=None, length=0, ranges=True, html=False, md5=True, begin=0
    ):
        """The archive, with faults: a refusal, the line cut after `cut` bytes, a length that is `length` off, Range
        ignored, a web page, no MD5, a wrong start"""
        s = self.server
        if status:
            return self.refuse(status, after)
        if html:
            return self.reply(200, b'<html>Please log in to the hospital network</html>', Content_Type='text/html')
        start = int(asked.removeprefix('bytes=').partition('-')[0]) if asked and ranges else 0
        if start and start >= len(s.body):
            return self.reply(416, Content_Range=f'bytes */{len(s.body)}')
        body = s.body[start:][:cut]
        self.send_response(206 if asked and ranges else 200)
        total = len(s.body) + length
        self.send_header('Content-Length', total - start)
        if asked and ranges:
            self.send_header('Content-Range', f'bytes {start + begin}-{total - 1}/{total}')
        self.send_header('Content-Type', 'application/zip')
        self.send_header('ETag', s.etag)
        self.send_header('Accept-Ranges', 'bytes')
        if md5:
            self.send_header(
                'x-goog-hash', 'crc32c=AAAAAA==,md5=' + base64.b64encode(hashlib.md5(s.honest).digest()).decode()
            )
        self.end_headers()
        for i in range(0, len(body), 2**14):
            self.wfile.write(body[i : i + 2**14][: total - start - i if length < 0 else None])
            if s.rate:
                time.sleep(2**14 / s.rate)


class KaggleServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, body: bytes, rate=0):
        super().__init__(('127.0.0.1', 0), Handler)
        self.change(body)
        self.rate, self.terms, self.log, self.api, self.faults = rate, True, [], deque(), deque()
        basic = base64.b64encode(b'tester:planted-key').decode()
        self.logins = {f'Bearer {TOKEN}', f'Basic {basic}'}

    def change(self, body, honest=None):
        "Put another archive on the server; `honest` is what its MD5 is made from"
        self.body, self.honest = body, honest or body
        self.etag = f'"{hashlib.sha256(self.honest).hexdigest()[:16]}"'

    def handle_error(self, request, address):
        pass  # clients that hang up are what this server is for

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()
        away = [o['url'] for o in self.log if o['method'] == 'CONNECT']
        assert not away, f'a client wanted to leave loopback for {away}'

    def variables(self, home, **more):
        "What sends the official client here; nothing of the caller's own logins is left to it"
        proxy = f'http://127.0.0.1:{self.server_port}'
        return (
            dict(
                KAGGLE_API_ENVIRONMENT='LOCALHOST',
                http_proxy=proxy,
                https_proxy=proxy,
                HOME=str(home),
                USERPROFILE=str(home),
            )
            | more
        )

    @contextlib.contextmanager
    def visit(self, home, KAGGLE_API_TOKEN=TOKEN, **more):
        "The environment of `variables` inside, the old one after"
        login = dict(KAGGLE_API_TOKEN=KAGGLE_API_TOKEN) if KAGGLE_API_TOKEN else {}
        with patch.dict(os.environ):
            for name in VARIABLES:
                os.environ.pop(name, None)
            os.environ.update(self.variables(home, **login, **more))
            yield self
