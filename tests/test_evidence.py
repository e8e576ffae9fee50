"What a stranger with a table of predictions meets at the command line."
import json

import jsonschema
import numpy as np
import pandas as pd
import pytest

from oct_classify.evaluate import imaginary
from oct_classify.metrics import METRICS_SCHEMA

FAULTS = {
    'lacks label': lambda t: t.drop(columns='label'),
    'lacks path': lambda t: t.drop(columns='path'),
    'lacks probability columns': lambda t: t[['path', 'label']],
    'missing or infinite': lambda t: t.assign(p_CNV=np.nan),
    'do not sum to 1': lambda t: t.assign(p_CNV=t.p_CNV*.5),
    'outside 0 to 1': lambda t: t.assign(p_CNV=-1., p_DME=2., p_DRUSEN=0., p_NORMAL=0.),
    'label that is none of': lambda t: t.assign(label=['AMD', *t.label[1:]]),
    'no number': lambda t: t.assign(p_DME='high'),
    'no rows': lambda t: t[:0],
    'a row already': lambda t: pd.concat([t, t[:1]]),
}


@pytest.mark.parametrize('says', FAULTS)
def test_faulty_table(cli, tmp_path, says):
    "One sentence, exit code 2, and nothing written"
    FAULTS[says](imaginary()).to_csv(tmp_path/'p.csv', index=False)
    code, _, err = cli('evaluate', '--predictions', tmp_path/'p.csv', '--out', tmp_path/'o')
    assert (code, err.count('\n')) == (2, 1) and says in err, err
    assert not (tmp_path/'o').exists()


def test_strangers_table(cli, tmp_path):
    "Classes of their own, no patients, no validation: everything that can be known, and nothing else"
    t = imaginary(40, 3.).drop(columns='patient').rename(columns=dict(p_CNV='p_wet', p_DME='p_dry', p_DRUSEN='p_other', p_NORMAL='p_none'))
    t['label'] = t.label.map(dict(CNV='wet', DME='dry', DRUSEN='other', NORMAL='none'))
    t.to_csv(tmp_path/'p.csv', index=False)
    code, _, err = cli('evaluate', '--predictions', tmp_path/'p.csv', '--out', tmp_path/'o', '--resamples', 300)
    assert code == 0, err
    m = json.loads((tmp_path/'o/metrics.json').read_text())
    jsonschema.validate(m, METRICS_SCHEMA)
    assert 'weighted_error' not in m['test'] and m['operating'] == [] and m['abstention'] is None
    p = t[[c for c in t if c.startswith('p_')]]
    assert m['test']['accuracy']['value'] == pytest.approx((p.columns.str[2:].to_numpy()[p.to_numpy().argmax(1)] == t.label).mean())
    assert pd.read_csv(tmp_path/'o/checklist.csv').answer.eq('absent').mean() > .5


def test_thresholds_come_from_validation(cli, tmp_path):
    "Test rows decide no threshold: other test rows, same threshold"
    valid = imaginary(60, 3., seed=1).assign(split='valid')
    got = []
    for seed in (2, 3):
        pd.concat([valid, imaginary(60, 3., seed=seed).assign(split='test')]).to_csv(tmp_path/'p.csv', index=False)
        assert cli('evaluate', '--predictions', tmp_path/'p.csv', '--out', tmp_path/str(seed), '--resamples', 300, '--prevalence', .05)[0] == 0
        got.append(json.loads((tmp_path/str(seed)/'metrics.json').read_text()))
    assert got[0]['operating'][0]['threshold'] == got[1]['operating'][0]['threshold'] and got[0]['test'] != got[1]['test']
    urgent = valid.label.isin(['CNV', 'DME'])
    assert ((valid.p_CNV+valid.p_DME)[urgent] >= got[0]['operating'][0]['threshold']).mean() >= .99
    assert got[0]['operating'][0]['at_prevalence']['ppv']['value'] < got[0]['operating'][0]['test']['ppv']['value']


def test_two_models(cli, tmp_path):
    "The better of two is found, and the same scans are asked for"
    t = imaginary(80, 3.)
    p = t[[c for c in t if c.startswith('p_')]].to_numpy()
    noise = np.random.default_rng(0).dirichlet(np.ones(4), len(t))
    t.assign(**dict(zip((c for c in t if c.startswith('p_')), (.3*p+.7*noise).T))).to_csv(tmp_path/'worse.csv', index=False)
    t.to_csv(tmp_path/'better.csv', index=False)
    assert cli('evaluate', '--predictions', tmp_path/'better.csv', '--against', tmp_path/'worse.csv', '--out', tmp_path/'o', '--resamples', 500)[0] == 0
    c = json.loads((tmp_path/'o/metrics.json').read_text())['comparison']
    assert c['differences']['accuracy']['low'] > 0 and c['mcnemar']['p'] < .01 and c['against'] == 'worse'
    t[1:].to_csv(tmp_path/'fewer.csv', index=False)
    code, _, err = cli('evaluate', '--predictions', tmp_path/'better.csv', '--against', tmp_path/'fewer.csv', '--out', tmp_path/'p')
    assert code == 2 and err.count('\n') == 1
