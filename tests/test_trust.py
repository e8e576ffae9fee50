"""Nothing is lost or claimed in silence: scans that vanish, patients that nobody knows, tables of a bundle that were
exchanged"""
import csv
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from oct_classify import pipeline as commands
from oct_classify.cli import main
from oct_classify.core import CLASSES, OctError
from oct_classify.phantoms.phantom import phantom_folder
from oct_classify.inference.model import OctModel

TINY = ('--arch', 'resnet18', '--size', '64', '--weights', 'none', '--epochs', '1')


def vanishing(monkeypatch, side, every):
    "Every so many-th scan of a side is deleted when training begins, or when it is over"
    step = 'train_stage' if side != 'test' else 'evaluate_stage'
    true = getattr(commands, step)

    def call(*args, **kwargs):
        df, data = (args[0], args[1]) if step == 'train_stage' else (args[1], args[2])
        for p in df.path[df.split == side].sort_values()[::every]: (Path(data)/p).unlink(missing_ok=True)
        return true(*args, **kwargs)
    monkeypatch.setattr(commands, step, call)


def answers(out):
    with open(out / 'checklist.csv', encoding='utf-8', newline='') as f:
        return {r['topic']: r['answer'] for r in csv.DictReader(f)}


@pytest.mark.parametrize('side', ['train', 'valid', 'test'])
def test_scans_that_vanish_are_named(side, cli, tmp_path, monkeypatch, no_onnx):
    """Every fifth test scan deleted left the test in silence: figures rested on 19 of 24, and the report said that
    every file could be read"""
    data, out = phantom_folder(tmp_path / 'data', 8, 0, 3, scans=2, shape=(124, 128)), tmp_path / 'out'
    vanishing(monkeypatch, side, 5)
    code, _, said = cli('run', data, '--out', out, *TINY)
    assert code == 0, said
    m, report = json.loads((out / 'metrics.json').read_text()), (out / 'report.html').read_text(encoding='utf-8')
    gone = m['unread'][side]
    sentence = f'{gone["scans"]} of {gone["of"]} {side} scans could not be read'
    assert (
        gone['scans'] == -(-gone['of'] // 5)
        and all(f['why'] for f in gone['files'])
        and len(gone['files']) == gone['scans']
    )
    assert (
        sentence in said
        and any(n.startswith(sentence) for n in m['notes'])
        and sentence in report
        and 'every file could be read' not in report
    )
    assert gone['files'][0]['path'] in report and m['scans'][side] == gone['of'] - gone['scans']
    assert sentence in answers(out)['missing data']
    if side == 'test':
        assert m['test']['accuracy']['n'] == gone['of'] - gone['scans']


def test_a_test_of_nothing_is_refused(cli, tmp_path, monkeypatch, no_onnx):
    data, out = phantom_folder(tmp_path/'data', 6, 0, 1, shape=(124, 128)), tmp_path/'out'
    vanishing(monkeypatch, 'test', 1)
    code, _, said = cli('run', data, '--out', out, *TINY)
    assert code == 2 and 'None of 8 test scans can be read any more' in said and not (out/'report.html').exists()


def anonymous(data, folder, keep=0):
    "Give the scans of a folder names without a patient, but for `keep` of them"
    for i, p in enumerate(sorted((data/folder).rglob('*.jpeg'))[keep:]): p.rename(p.with_name(f'scan{i}.jpeg'))


@pytest.mark.parametrize(
    'folder, keep', [('train', 1), *(pytest.param(f, 0, marks=pytest.mark.slow) for f in ('test', 'train'))])
def test_unknown_patients_are_not_vouched_for(folder, keep, cli, tmp_path, no_onnx):
    "`audit --strict` passed, `run` said Verified, and the checklist stated that every patient was on one side"
    data, out = phantom_folder(tmp_path / 'data', 8, 0, 3, shape=(124, 128)), tmp_path / 'out'
    anonymous(data, folder, keep)
    code, _, said = cli('audit', data, '--out', tmp_path / 'audit', '--strict')
    assert code == 1 and 'are unknown (more than 5% of a side)' in said
    code, _, said = cli('run', data, '--out', out, *TINY)
    assert code == 0 and 'Not verified: the patients of' in said and '\nVerified' not in said
    m, report, check = (
        json.loads((out / 'metrics.json').read_text()),
        (out / 'report.html').read_text(encoding='utf-8'),
        answers(out)['what is never on two sides'],
    )
    assert m['split_check']['unknown'] and m['split_check']['leak'] is None
    assert any(n.startswith('Not verified') for n in m['notes'])
    assert (
        'of patients the model had not met' not in report
        and 'A patient is on one side only.' not in report
        and 'found a leak' not in check
    )
    assert check == 'absent' or 'as far as patients are known' in check


def test_known_patients_are(cli, tmp_path, no_onnx):
    data, out = phantom_folder(tmp_path / 'data', 8, 0, 3, shape=(124, 128)), tmp_path / 'out'
    assert cli('audit', data, '--out', tmp_path / 'audit', '--strict')[0] == 0
    code, _, said = cli('run', data, '--out', out, *TINY)
    assert (
        code == 0
        and 'Verified: no patient' in said
        and answers(out)['what is never on two sides'].startswith('Patients and duplicates are on one side only')
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('trained')
    data = phantom_folder(tmp/'data', 6, 0, 1, shape=(124, 128))
    with pytest.MonkeyPatch.context() as m:
        m.setattr('oct_classify.inference.onnx.write_onnx', lambda *a: None)
        assert main(['run', str(data), '--out', str(tmp/'out'), *TINY]) == 0
    return tmp/'out/bundle', data


def emptied(name): return lambda b: pd.read_parquet(b/name)[:0].to_parquet(b/name)


FAULTS = dict(
    training=emptied('training.parquet'),
    predictions=emptied('predictions.parquet'),
    gone=lambda b: (b / 'training.parquet').unlink(),
    no_sums=lambda b: (b / 'config.json').write_text(
        json.dumps(json.loads((b / 'config.json').read_text()) | dict(sums={}))
    ),
)


@pytest.mark.parametrize('fault', FAULTS)
def test_tables_of_a_bundle_are_held_against_their_sums(fault, trained, cli, tmp_path):
    "Emptied, training.parquet let `evaluate` score training scans at 100 % without a word"
    b = shutil.copytree(trained[0], tmp_path / 'bundle')
    FAULTS[fault](b)
    code, _, said = cli('evaluate', b, trained[1], '--out', tmp_path / 'eval')
    assert (
        code == 2
        and said.count('\n') == 1
        and 'get the bundle again' in said
        and not (tmp_path / 'eval/report.html').exists()
    )


def test_what_a_bundle_does_not_list_is_named(trained, cli, tmp_path):
    b = shutil.copytree(trained[0], tmp_path / 'bundle')
    (b / 'inputs2.safetensors').write_bytes(b'x')
    assert 'inputs2.safetensors' in cli('evaluate', b, trained[1], '--out', tmp_path / 'eval')[2]
    with pytest.raises(OctError, match='replaced'):
        (emptied('training.parquet')(b), cli and commands.evaluate(b, trained[1], out=tmp_path / 'e'))
    assert OctModel.load(trained[0]).classes == CLASSES


def test_an_uploaded_list_reads_no_file_of_the_server(tmp_path):
    from oct_classify.app import open_scans
    phantom_folder(tmp_path/'data', 1, 0, 0, shape=(124, 128))
    (tmp_path/'up').mkdir()
    scan = next((tmp_path/'data').rglob('*.jpeg'))
    shutil.copy(scan, tmp_path/'up/own.jpeg')
    (tmp_path/'up/list.csv').write_text(f'path\n{scan}\nown.jpeg\nhttp://localhost/a.png\n')
    scans = open_scans({tmp_path/'up/list.csv': 'list.csv'})
    assert [s.name for s in scans] == ['list.csv']
    with pytest.raises(OctError, match='give the scans themselves'): scans[0].image()


def test_no_cell_of_a_table_is_a_formula(tmp_path, capsys, monkeypatch):
    "A file called =HYPERLINK(…) was live in the CSV of predict, and its escape sequences reached the terminal"
    from oct_classify.data.split import load_split, save_split
    from oct_classify.inference.batch import write_table
    from oct_classify.pipeline import read_predictions
    names = ['=HYPERLINK("http://x").png', '@SUM(1).png', 'red\x1b[31m.png']
    t = pd.DataFrame(dict(path=names, label='CNV', p_CNV=[.75, .5, 1], p_DME=[.25, .5, 0]))
    write_table(t, tmp_path/'p.csv')
    with open(tmp_path/'p.csv', encoding='utf-8', newline='') as f: cells = [c for row in csv.reader(f) for c in row]
    assert not [c for c in cells if c[:1] in '=+-@' and c]
    assert read_predictions(tmp_path/'p.csv')[0].path.tolist() == names
    write_table(t)
    assert '\x1b' in capsys.readouterr().out # a pipe gets the name as it is
    monkeypatch.setattr('sys.stdout.isatty', lambda: True, raising=False)
    write_table(t)
    assert '\x1b' not in capsys.readouterr().out
    table = pd.DataFrame(dict(path=[f'{n[0]}{i}.png' for i, n in enumerate(names*4)], label=['CNV', 'DME']*6))
    table = table.assign(patient=range(12), sha256='', duplicate_of='', error='', folder='', reason='')
    table['split'] = ['train']*6+['valid']*3+['test']*3
    save_split(table, tmp_path/'split.csv')
    assert load_split(table, tmp_path/'split.csv').split.tolist() == table.split.tolist()
