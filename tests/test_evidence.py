"What a stranger with a table of predictions meets at the command line."
import json

import jsonschema
import numpy as np
import pandas as pd
import pytest

from oct_classify.evaluation.figures import imaginary
from oct_classify.reporting.report import KEYS, METRICS_SCHEMA

FAULTS = {
    'lacks label': lambda t: t.drop(columns='label'),
    'lacks path': lambda t: t.drop(columns='path'),
    'lacks probability columns': lambda t: t[['path', 'label']],
    'missing or infinite': lambda t: t.assign(p_CNV=np.nan),
    'do not sum to 1': lambda t: t.assign(p_CNV=t.p_CNV*.5),
    'outside 0 to 1': lambda t: t.assign(p_CNV=-1., p_DME=2., p_DRUSEN=0., p_NORMAL=0.),
    'label that is none of': lambda t: t.assign(label=['AMD', *t.label[1:]]),
    'not a number': lambda t: t.assign(p_DME='high'),
    'no rows': lambda t: t[:0],
    'a row already': lambda t: pd.concat([t, t[:1]]),
}


def told(out):
    "The metrics.json of an evaluation, which holds to its schema and has no key that is not described"
    m = json.loads((out/'metrics.json').read_text())
    jsonschema.validate(m, METRICS_SCHEMA)
    assert set(m) <= set(KEYS), set(m)-set(KEYS)
    return m


@pytest.mark.parametrize('says', FAULTS)
def test_faulty_table(cli, tmp_path, says):
    "One sentence, exit code 2, and nothing written"
    FAULTS[says](imaginary()).to_csv(tmp_path/'p.csv', index=False)
    code, _, err = cli('evaluate', '--predictions', tmp_path/'p.csv', '--out', tmp_path/'o')
    assert (code, err.count('\n')) == (2, 1) and says in err, err
    assert not (tmp_path/'o').exists()


def test_strangers_table(cli, tmp_path):
    "Classes of their own, no patients, no validation: everything that can be known, and nothing else"
    t = (
        imaginary(40, 3.0)
        .drop(columns='patient')
        .rename(columns=dict(p_CNV='p_wet', p_DME='p_dry', p_DRUSEN='p_other', p_NORMAL='p_none'))
    )
    t['label'] = t.label.map(dict(CNV='wet', DME='dry', DRUSEN='other', NORMAL='none'))
    t.to_csv(tmp_path / 'p.csv', index=False)
    code, _, err = cli('evaluate', '--predictions', tmp_path / 'p.csv', '--out', tmp_path / 'o', '--resamples', 300)
    assert code == 0, err
    m = told(tmp_path / 'o')
    assert 'weighted_error' not in m['test'] and m['operating'] == [] and m['abstention'] is None
    p = t[[c for c in t if c.startswith('p_')]]
    assert m['test']['accuracy']['value'] == pytest.approx(
        (p.columns.str[2:].to_numpy()[p.to_numpy().argmax(1)] == t.label).mean()
    )
    assert pd.read_csv(tmp_path / 'o/checklist.csv').answer.eq('absent').mean() > 0.5


def test_thresholds_come_from_validation(cli, tmp_path):
    "Test rows decide no threshold: other test rows, same threshold"
    valid = imaginary(60, 3.0, seed=1).assign(split='valid')
    got = []
    for seed in (2, 3):
        pd.concat([valid, imaginary(60, 3.0, seed=seed).assign(split='test')]).to_csv(tmp_path / 'p.csv', index=False)
        assert (
            cli(
                'evaluate',
                '--predictions',
                tmp_path / 'p.csv',
                '--out',
                tmp_path / str(seed),
                '--resamples',
                300,
                '--prevalence',
                0.05,
            )[0]
            == 0
        )
        got.append(told(tmp_path / str(seed)))
    assert (
        got[0]['operating'][0]['threshold'] == got[1]['operating'][0]['threshold'] and got[0]['test'] != got[1]['test']
    )
    urgent = valid.label.isin(['CNV', 'DME'])
    assert ((valid.p_CNV + valid.p_DME)[urgent] >= got[0]['operating'][0]['threshold']).mean() >= 0.99
    assert got[0]['operating'][0]['at_prevalence']['ppv']['value'] < got[0]['operating'][0]['test']['ppv']['value']


def test_two_models(cli, tmp_path):
    "The better of two is found, and the same scans are asked for"
    t = imaginary(80, 3.0)
    p = t[[c for c in t if c.startswith('p_')]].to_numpy()
    noise = np.random.default_rng(0).dirichlet(np.ones(4), len(t))
    t.assign(**dict(zip((c for c in t if c.startswith('p_')), (0.3 * p + 0.7 * noise).T))).to_csv(
        tmp_path / 'worse.csv', index=False
    )
    t.to_csv(tmp_path / 'better.csv', index=False)
    assert (
        cli(
            'evaluate',
            '--predictions',
            tmp_path / 'better.csv',
            '--against',
            tmp_path / 'worse.csv',
            '--out',
            tmp_path / 'o',
            '--resamples',
            500,
        )[0]
        == 0
    )
    c = told(tmp_path / 'o')['comparison']
    assert c['differences']['accuracy']['low'] > 0 and c['mcnemar']['p'] < 0.01 and c['against'] == 'worse'
    t[1:].to_csv(tmp_path / 'fewer.csv', index=False)
    code, _, err = cli(
        'evaluate',
        '--predictions',
        tmp_path / 'better.csv',
        '--against',
        tmp_path / 'fewer.csv',
        '--out',
        tmp_path / 'p',
    )
    assert code == 2 and err.count('\n') == 1


def test_rows_without_an_answer(cli, tmp_path):
    "They are left out and said to be, and the report is written nonetheless"
    t = imaginary(40, 3.).assign(abstain=False)
    t.loc[0, 'abstain'], t.loc[0, [c for c in t if c.startswith('p_')]] = True, np.nan
    t.to_csv(tmp_path/'p.csv', index=False)
    code, _, err = cli('evaluate', '--predictions', tmp_path/'p.csv', '--out', tmp_path/'o', '--resamples', 200)
    says = f'1 of {len(t)} rows holds no answer and was left out.'
    assert code == 0 and says in err and 'Traceback' not in err
    assert told(tmp_path/'o')['notes'] == [says] and says in (tmp_path/'o/report.html').read_text(encoding='utf-8')


@pytest.fixture
def bundle(tmp_path):
    "A bundle of a network that knows nothing, which does not say what it was trained on"
    from oct_classify.inference.bundle import save_bundle
    from oct_classify.core import CLASSES
    from oct_classify.training.network import network

    return save_bundle(
        tmp_path / 'b',
        network('resnet10t', size=64),
        dict(arch='resnet10t', classes=list(CLASSES), size=[64, 64], view='whole'),
    )


def test_bundle_and_what_it_met(cli, tmp_path, bundle):
    "Not known: a remark. Known: left out. Damaged: what to do, which is not to delete it"
    from oct_classify.inference.bundle import load_config, write_config
    from oct_classify.data.scans import scan_table
    from oct_classify.phantoms.phantom import phantom_folder

    d = phantom_folder(tmp_path / 'd', 0, 0, 3, shape=(124, 128))
    t = scan_table(d)
    code, _, err = cli('evaluate', bundle, d, '--out', tmp_path / 'o', '--resamples', 200)
    assert code == 0 and 'may have been in training' in err, err
    m = told(tmp_path / 'o')
    assert (
        m['test']['accuracy']['n'] == len(t)
        and m['bundle'] == str(bundle)
        and 'may have been in training' in m['notes'][0]
    )
    met = t[t.patient == t.patient[0]]
    met[['patient', 'sha256']].to_parquet(bundle / 'training.parquet')
    write_config(bundle, load_config(bundle))
    code, _, err = cli('evaluate', bundle, d, '--out', tmp_path / 'p', '--resamples', 200)
    assert (
        code == 0
        and f'{len(met)} scans were left out' in err
        and told(tmp_path / 'p')['test']['accuracy']['n'] == len(t) - len(met)
    )
    t[['patient', 'sha256']].to_parquet(bundle / 'training.parquet')
    write_config(bundle, load_config(bundle))
    code, _, err = cli('evaluate', bundle, d, '--out', tmp_path / 'q')
    assert code == 2 and 'name a folder of scans that the model has not met' in err and err.strip().count('\n') == 0
    (bundle / 'training.parquet').write_bytes(b'cut short')
    code, _, err = cli('evaluate', bundle, d, '--out', tmp_path / 'r')
    assert code == 2 and 'get the bundle again' in err and 'delete' not in err


def test_checklist_of_real_figures(cli, tmp_path):
    "Strata, calibration and abstention are found where metrics.json keeps them"
    t = pd.concat(
        [imaginary(120, 4.0, scans=1.0, seed=2).assign(split='valid'), imaginary(60, 3.0, seed=1).assign(split='test')]
    )
    t.assign(device=np.where(t.patient % 2, 'A', 'B')).to_csv(tmp_path / 'p.csv', index=False)
    assert (
        cli(
            'evaluate',
            '--predictions',
            tmp_path / 'p.csv',
            '--by',
            'device',
            '--out',
            tmp_path / 'o',
            '--resamples',
            200,
        )[0]
        == 0
    )
    m, said = told(tmp_path / 'o'), pd.read_csv(tmp_path / 'o/checklist.csv').set_index('topic').answer
    assert said['figures in parts of the data'] == 'Test figures by device.'
    assert f"ECE {m['test']['ece']['value']:.3f}" in said['figures used']
    on = m['abstention']['test']
    assert (
        f"on test scans answered {100 * on['coverage']['value']:.1f} %" in said['doubtful results']
        and f"wrong among these {100 * on['risk']['value']:.1f} %" in said['doubtful results']
    )
    assert on['coverage']['value'] != m['abstention']['coverage']['value']


def test_names_decide_nothing(tmp_path):
    "A folder called unknown, and notes that quote file names, change no answer of the checklist"
    from dataclasses import asdict
    from oct_classify.data.scans import scan_table
    from oct_classify.data.split import inspect_split, split_table
    from oct_classify.phantoms.phantom import phantom_folder
    from oct_classify.reporting.checklist import crosswalk, facts_from

    check = asdict(
        inspect_split(split_table(scan_table(phantom_folder(tmp_path / 'unknown', 2, 2, 2, shape=(124, 128)))))
    )
    assert not check['leak'] and not check['unknown']
    m = dict(policy='clean', seed=1, scans=check['scans'], split_check=check, folder='unknown', notes=[])
    named = m | dict(notes=["1 scan can't be used, e.g. unknown/on two sides, too good.jpeg: it is empty"])
    plain, quoted = (crosswalk(facts_from(o)).set_index('topic') for o in (m, named))
    assert plain.state['what is never on two sides'] == 'stated' and plain.equals(quoted)
    hidden = m | dict(split_check=check | dict(unknown=dict(test=1)), notes=['All is known.'])
    assert crosswalk(facts_from(hidden)).set_index('topic').state['what is never on two sides'] == 'partly'
