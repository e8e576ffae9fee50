"Classes of somebody else, from the folder to an answer."
import json

import pandas as pd
from oct_classify.inference.bundle import load_config
from oct_classify.phantoms.phantom import phantom_folder

OWN = dict(CNV='AMD', DME='ERM', NORMAL='NORMAL')


def test_own_classes_from_folder_to_answer(cli, offline, no_onnx, tmp_path):
    d = phantom_folder(tmp_path / 'd', 6, 1, 2, shape=(124, 128), classes=tuple(OWN))
    for p in sorted(d.glob('*/*')):
        p.rename(p.with_name(OWN[p.name]))
    code, _, err = cli('run', d, '--out', tmp_path / 'none')
    assert code == 2 and 'Only NORMAL scans were found' in err
    small = ('--arch', offline, '--size', '64', '--epochs', '0')
    assert cli('run', d, '--classes', 'amd,erm,normal', *small, '--out', tmp_path / 'o')[0] == 0
    m, c = json.loads((tmp_path / 'o/metrics.json').read_text()), load_config(tmp_path / 'o/bundle')
    assert c['classes'] == ['NORMAL', 'AMD', 'ERM'] and m['test']['accuracy']['n'] == 12
    assert not [k for k in m['test'] if 'urgent' in k] and 'weighted_error' not in m['test']
    assert (
        'urgent'
        not in (tmp_path / 'o/report.html')
        .read_text(encoding='utf-8')
        .lower()
        .split('<body')[-1]
        .split('research use')[0]
    )
    assert cli('predict', tmp_path / 'o/bundle', d / 'test', '--out', tmp_path / 'p.csv')[0] == 0
    t = pd.read_csv(tmp_path / 'p.csv')
    assert (
        list(t.filter(like='p_')) == ['p_NORMAL', 'p_AMD', 'p_ERM']
        and not t.urgent.any()
        and set(t.label) == set(OWN.values())
    )
    assert cli('evaluate', tmp_path / 'o/bundle', d, '--out', tmp_path / 'e')[0] == 0
    assert json.loads((tmp_path / 'e/metrics.json').read_text())['test']['accuracy']['n'] == 12
    assert cli('audit', d, '--classes', 'AMD,ERM,NORMAL', '--out', tmp_path / 'a')[0] == 0
    assert json.loads((tmp_path / 'a/audit.json').read_text())['classes'] == dict(AMD=18, ERM=18, NORMAL=18)


def test_class_names_that_are_none(cli, tmp_path):
    for text in ('AMD', 'AMD,AMD', 'AMD,,ERM'):
        code, _, err = cli('run', tmp_path, '--classes', text)
        assert code == 2 and 'does not name two classes or more' in err
