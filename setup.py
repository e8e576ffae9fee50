"Hands settings.ini to setuptools; holds no fact of its own."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = ini['DEFAULT']


def lines(text): return [o for o in text.splitlines() if o.strip()]


setup(
    description=cfg['description'],
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    keywords=cfg['keywords'].split(),
    license=cfg['license'],
    classifiers=lines(cfg['classifiers']),
    python_requires=f">={cfg['min_python']}",
    install_requires=lines(cfg['requirements']),
    extras_require={k: lines(v) for k, v in ini['extras'].items() if k not in ini.defaults()},
    entry_points=dict(console_scripts=lines(cfg['console_scripts']), nbdev=[f'{(n:="oct_classify")}={n}._modidx:d']),
)
