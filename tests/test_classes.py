"Classes of somebody else, from the folder to an answer."
import json
import shutil

import pandas as pd
import pytest
from oct_classify.core import digest
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


TINY = ('--arch', 'test_resnet', '--weights', 'none', '--size', '64', '--epochs', '1', '--policy', 'patient')


def test_a_table_trains_what_names_train(cli, no_onnx, tmp_path):
    d = phantom_folder(tmp_path / 'd', 4, 0, 0, shape=(64, 64), classes=('CNV', 'NORMAL'))
    rows = []
    for i, p in enumerate(sorted(d.rglob('*.jpeg'))):
        rows.append((f'D:\\Müller\\t\\{i:03}.jpg', p.parent.name.lower(), p.stem.split('-')[1]))
        (tmp_path / 't').mkdir(exist_ok=True)
        shutil.copy(p, tmp_path / f't/{i:03}.jpg')
    t = pd.DataFrame(rows, columns=['Datei', 'Diagnose', 'Person'])
    (tmp_path / 'labels.CSV').write_bytes(t.to_csv(index=False, sep=';').encode('utf-16'))
    names = ('--root', tmp_path / 't', '--columns', 'path=datei,label=diagnose,patient=person')
    assert cli('train', d, *TINY, '--out', tmp_path / 'by_name')[0] == 0
    code, _, err = cli('train', tmp_path / 'labels.CSV', *names, *TINY, '--out', tmp_path / 'by_table')
    assert code == 0 and 'Verified: no patient (8 in all)' in err, err
    a, b = (digest(tmp_path / o / 'bundle/model.safetensors') for o in ('by_name', 'by_table'))
    assert a == b
    bundle, out = tmp_path / 'by_table/bundle', tmp_path / 'e'
    code, _, err = cli('evaluate', bundle, tmp_path / 'labels.CSV', *names, '--out', out, '--resamples', 100)
    n = json.loads((out / 'metrics.json').read_text())['test']['accuracy']['n']
    assert code == 0 and f'{16 - n} scans were left out' in err and 0 < n < 8
    code, _, err = cli('audit', tmp_path / 'labels.CSV', '--out', tmp_path / 'none')
    assert code == 2 and 'lacks the column path: it has Datei, Diagnose, Person' in err


@pytest.mark.slow
def test_classes_called_2_and_na(cli, no_onnx, tmp_path):
    d = phantom_folder(tmp_path / 'd', 4, 0, 0, shape=(64, 64), classes=('CNV', 'NORMAL'))
    for p in sorted(d.glob('train/*')):
        p.rename(p.with_name(dict(CNV='2', NORMAL='na')[p.name]))
    pd.DataFrame([(p.name, p.stem.split('-')[1] + ' é') for p in d.rglob('*.jpeg')]).to_csv(
        tmp_path / 'p.csv', index=False, header=['file', 'patient'], encoding='cp1252')
    code, _, err = cli('run', d / 'train', '--classes', '2,NA', '--patients', tmp_path / 'p.csv', *TINY,
        '--out', tmp_path / 'o')
    assert code == 0 and 'Verified: no patient (8 in all)' in err, err
    both = json.loads((tmp_path / 'o/metrics.json').read_text())
    assert [k for k in both['test'] if k.startswith('sensitivity')] == ['sensitivity_2', 'sensitivity_NA']
    assert cli('predict', tmp_path / 'o/bundle', d, '--out', tmp_path / 'q.csv')[0] == 0
    code, _, err = cli('evaluate', '--predictions', tmp_path / 'q.csv', '--out', tmp_path / 'e', '--resamples', 100)
    assert code == 0 and json.loads((tmp_path / 'e/metrics.json').read_text())['test']['accuracy']['n'] == 16
