"The figures that README and notebooks promise, on phantoms and, where they are at hand, on real scans."
import json

import jsonschema
import pandas as pd
import pytest

from oct_classify.data.scans import load_table, scan_table
from oct_classify.reporting.report import KEYS, METRICS_SCHEMA
from oct_classify.data.split import check_split


def metrics(d):
    m = json.loads((d/'metrics.json').read_text())
    jsonschema.validate(m, METRICS_SCHEMA)
    assert set(m) <= set(KEYS), set(m)-set(KEYS)
    return {k: v for k,v in m.items() if k not in ('seconds', 'made')}


@pytest.mark.slow
def test_demo_learns(cli, offline, tmp_path):
    code, _, err = cli('demo', '--out', tmp_path)
    assert code == 0, err
    m = metrics(tmp_path)
    assert m['arch'] == offline and m['scans']['test'] == 160
    assert m['test']['accuracy']['value'] >= 0.9, m['test']['accuracy']
    said = pd.read_csv(tmp_path / 'checklist.csv').set_index('topic').answer
    assert (
        said['figures in parts of the data'].startswith('Test figures by ')
        and f"ECE {m['test']['ece']['value']:.3f}" in said['figures used']
    )
    t = load_table(tmp_path / 'scans.parquet')
    assert not set(t[t.folder == 'test'].patient) & set(t[t.folder == 'train'].patient)


@pytest.mark.slow
def test_same_seed_same_figures(cli, offline, tmp_path):
    "With pretrained weights, head and one epoch of all layers"
    from oct_classify.phantoms.phantom import phantom_folder

    d = phantom_folder(tmp_path / 'd', 6, 1, 3, shape=(124, 128))
    for o in ('a', 'b'):
        assert (
            cli(
                'run',
                d,
                '--arch',
                offline,
                '--size',
                '64',
                '--epochs',
                '1',
                '--seed',
                '7',
                '--out',
                tmp_path / o,
                '--quiet',
            )[0]
            == 0
        )
    assert metrics(tmp_path / 'a') == metrics(tmp_path / 'b')
    for f in ('split.csv',):
        assert (tmp_path / 'a' / f).read_bytes() == (tmp_path / 'b' / f).read_bytes()
    assert load_table(tmp_path / 'a/scans.parquet').equals(load_table(tmp_path / 'b/scans.parquet'))
    assert (tmp_path / 'a/bundle/model.safetensors').read_bytes() == (
        tmp_path / 'b/bundle/model.safetensors'
    ).read_bytes()


def test_real_table_and_split(real):
    from oct_classify.data.split import split_table

    t = scan_table(real)
    assert (
        (t.error == '').all()
        and len(t) == 700
        and t.folder.value_counts().to_dict() == {'train': 568, 'test': 100, 'val': 32}
    )
    s = split_table(t)
    assert check_split(s).verified and (s.split != 'dropped').all()
    assert split_table(t).equals(s)


def test_real_head_alone(cli, real, offline, tmp_path):
    "Frozen features at 128 pixels: far above chance within a minute"
    code, _, err = cli('run', real, '--arch', offline, '--size', '128', '--epochs', '0', '--out', tmp_path)
    assert code == 0, err
    assert metrics(tmp_path)['test']['accuracy']['value'] >= .7


def test_blocked_hub_falls_back(cli, offline, no_onnx, tmp_path, monkeypatch):
    "resnet50 behind a firewall: one line says what takes its place, and so does the report"
    import oct_classify.training.network as network
    from oct_classify.phantoms.phantom import phantom_folder

    def blocked(url, timeout=5): raise network.HubError(f'{url} is not reachable from here.')
    monkeypatch.setattr(network, 'probe', blocked)
    monkeypatch.setattr(network, 'cached_file', lambda arch: None)
    d = phantom_folder(tmp_path/'d', 5, 1, 2, shape=(124, 128))
    code, _, err = cli('run', d, '--size', '64', '--epochs', '0', '--out', tmp_path/'o')
    assert code == 0 and f'Using {offline}' in err
    assert 'took its place' in (tmp_path/'o/report.html').read_text(encoding='utf-8')
    assert metrics(tmp_path/'o')['arch'] == offline


@pytest.mark.slow
def test_what_a_leak_is_worth(cli, offline, no_onnx, tmp_path):
    "Two policies side by side: who leaked, and the difference, counted a second way from the files"
    import numpy as np
    from scipy.stats import t
    from oct_classify.core import CLASSES
    from oct_classify.phantoms.phantom import phantom_folder

    d = phantom_folder(tmp_path / 'd', 8, 1, 4, shape=(124, 128))
    for c in CLASSES:  # one test patient per class gets a scan in training
        old, of = sorted((d / 'train' / c).iterdir())[0], sorted((d / 'test' / c).iterdir())[0]
        old.rename(old.with_name(of.name.replace('-1.', '-9.')))
    small = ('--arch', offline, '--size', '64', '--epochs', '0')
    args = ('run', d, '--policy', 'official,clean', *small, '--out', tmp_path / 'o')
    assert cli(*args)[0] == 0
    m = metrics(tmp_path / 'o')
    for p in ('official', 'clean'):
        s = pd.read_csv(tmp_path / 'o' / p / 'split.csv')
        both = set(s[s.split == 'test'].patient) & set(s[s.split == 'train'].patient)
        assert m['shared'][p]['patients'] == len(both) == (4 if p == 'official' else 0)
        assert m['policies'][p]['scans']['train'] == (s.split == 'train').sum()
        assert m['policies'][p]['recipe'] == 'resnet50'
    a, b = [
        load_table(tmp_path / 'o' / p / 'predictions.parquet').query("split == 'test'").set_index('path')
        for p in ('official', 'clean')
    ]
    gain = (
        ((b.predicted == b.label).astype(float) - (a.predicted == a.label).loc[b.index])
        .groupby(b.patient)
        .agg(['sum', 'count'])
        .to_numpy()
    )
    w = [gain[i].sum(0) for i in np.random.default_rng(9).integers(len(gain), size=(4000, len(gain)))]
    spread = np.std([x / n for x, n in w]) * np.sqrt(len(gain) / (len(gain) - 1))
    half = t.ppf(0.975, len(gain) - 1) * spread
    got = m['differences'][0]
    assert (got['of'], got['minus'], got['accuracy']['n']) == ('clean', 'official', 32)
    assert got['accuracy']['value'] == pytest.approx(gain[:, 0].sum() / gain[:, 1].sum())
    value, low, high = (got['accuracy'][k] for k in ('value', 'low', 'high'))
    if half: assert (low, high) == pytest.approx((value - half, value + half), abs=0.02)
    html = (tmp_path / 'o/report.html').read_text(encoding='utf-8')
    assert 'Under official, 4 of 16 test patients also occur in training, with 8 of 32 test scans.' in html
    assert 'These metrics are too good' in (tmp_path / 'o/official/report.html').read_text(encoding='utf-8')
    assert cli(*args)[2].count('Already trained') == 2
