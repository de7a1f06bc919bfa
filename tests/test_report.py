"""The page of a run, as text and in a browser."""
import html.parser
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from conic_jax import command_line
from conic_jax.errors import UserError
from conic_jax.export import targets
from conic_jax.report import __main__ as main
from conic_jax.report import curves, formats
from conic_jax.report.read_run import read_run

HOSTILE = '<script>alert("1")</script>'
SUMMARY = {'step': 6, 'num_images': 12048, 'knn_top1': 0.8125, 'linear_top1': 0.75, 'feature_norm': 13.13426,
           'linear_by_learning_rate': {'0.1': 0.7}, 'random_init': {'knn_top1': 0.25},
           'pixels': {'knn_top1': 0.5}}
SEGMENT = {'miou': 0.4123, 'pixel_accuracy': 0.5, 'iou': {'road': 0.9, HOSTILE: 0.125},
           'left_out': ['sky', 'car']}
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
# The elements that HTML never closes.
VOID = {'meta', 'link', 'img'}


class Reader(html.parser.HTMLParser):
  """Reads a page; every element must be closed in its turn."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text, self._open = [], '', []
    self.feed(text)
    self.close()
    assert self._open == []

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.text += data

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def numbers_of(*evaluations):
  leaves = [value for figures in evaluations for value in traverse_util.flatten_dict(figures).values()]
  return {repr(value) for value in leaves if isinstance(value, int | float)}


@pytest.fixture
def run(tiny_config, tmp_path):
  """A run folder with reports, two evaluations, and a picture."""
  folder = tmp_path / 'run'
  (folder / 'checkpoints').mkdir(parents=True)
  (folder / 'figures').mkdir()
  (folder / 'config.json').write_text(tiny_config.to_json())
  reports = [{'step': step, 'epoch': step / 2, 'loss': 9. - step, 'loss_instance': 8. - step,
              'learning_rate': 0.1, 'of_my_own': step} for step in range(5)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(report) + '\n' for report in reports))
  (folder / 'summary.json').write_text(json.dumps(SUMMARY))
  (folder / 'segment_roads.json').write_text(json.dumps(SEGMENT))
  for name in ('curves', 'neighbours'):
    Image.new('RGB', (4, 4)).save(folder / 'figures' / f'{name}.png')
  return folder


def written(run):
  main.report(run, run / 'report.html')
  return (run / 'report.html').read_text()


def test_the_page_holds_every_figure_and_needs_nothing_else(run, tmp_path):
  text = written(run)
  page = Reader(text)
  assert {figure['value'] for figure in page.all('data')} == numbers_of(SUMMARY, SEGMENT)
  for part in ('81.2 %', '75.0 %', '25.0 %', '50.0 %', '12,048', '13.13', '41.2 %', '70.0 %', 'sky, car',
               'Segmentation: roads', 'finished after 6 steps', 'conic · images', 'lr_scale',
               'python -m conic_jax.export RUN --to=safetensors --out=encoder_safetensors.safetensors'):
    assert part in page.text
  assert '--to=torchvision' not in page.text
  assert [level for level, _ in page.tags if level in ('h1', 'h2')] == ['h1'] + 6 * ['h2']
  assert len(page.all('caption')) == len(page.all('table'))

  picture, = page.all('img')
  assert picture['alt'].startswith('Images, and the training images')
  loaded = [attributes[name] for _, attributes in page.tags for name in ('src', 'href') if name in attributes]
  assert [value[:15] for value in loaded] == ['data:,', 'data:image/png;']
  for part in ('://', '@import', 'url(', str(tmp_path)):
    assert part not in text


def test_the_commands_are_there(run):
  page = Reader(written(run)).text
  modules, configs = set(re.findall(r'python -m (\S+)', page)), re.findall(r'--config=(\S+)', page)
  assert modules == {f'conic_jax.{name}' for name in ('main', 'export', 'embed', 'activations', 'report')}
  assert all(importlib.util.find_spec(module) for module in modules)
  tasks = {command_line.load(config).task for config in configs}
  assert tasks == {'knn', 'linear', 'finetune', 'svm', 'segment'}
  evaluations = re.findall(r'--config=[^#]*', page)
  assert all(('folder' in line) == ('--config.data.dir=IMAGES' in line) for line in evaluations)


def test_the_command_of_each_target_writes_its_own_file(run, tiny_config):
  tiny_config.encoder = {**tiny_config.encoder.to_dict(), 'stem': 'imagenet', 'blocks': (), 'width': 1.}
  (run / 'config.json').write_text(tiny_config.to_json())
  exported = re.findall(r'--to=(\w+) --out=(\S+)', Reader(written(run)).text)
  assert [target for target, _ in exported] == list(targets.TARGETS)
  files = [str(path) for target, out in exported
           for path in (out, targets.card_path(target, Path(out)))]
  assert len(set(files)) == len(files)


def test_the_main_figures_are_one_row_each(run):
  (run / 'summary.json').write_text(json.dumps(
    {'knn_top1': 0.8125, 'linear_top1': 0.75, 'random_init': {'knn_top1': 0.25, 'linear_top1': 0.125}}))
  for name, figures in (('semi_1pct', {'top1': 0.5, 'top5': 1.}), ('semi_10pct', {'top1': 0.625, 'top5': 1.}),
                        ('knn', {'knn_top1': 0.8125}), ('knn_cifar10', {'knn_top1': 0.8125}),
                        ('linear', {'linear_top1': 0.75}), ('linear_moco', {'linear_top1': 0.7})):
    (run / f'{name}.json').write_text(json.dumps(figures))
  text = written(run)
  table = re.search(r'<table class="headline">.*?</table>', text).group()
  rows = [re.sub(r'<[^>]*>', ' ', row).split() for row in re.findall(r'<th scope="row">.*?</tr>', table)]
  assert [' '.join(row) for row in rows] == [
    'kNN top-1 Nearest neighbours 81.2 % 25.0 % –', 'kNN top-1 Nearest neighbours: cifar10 81.2 % – –',
    'Linear top-1 Linear classifier 75.0 % 12.5 % –',
    'Linear top-1 Linear classifier: moco 70.0 % – –',
    'mIoU Segmentation: roads 41.2 % – –',
    'top-1 Semi-supervised: 10pct 62.5 % – –', 'top-5 Semi-supervised: 10pct 100.0 % – –',
    'top-1 Semi-supervised: 1pct 50.0 % – –', 'top-5 Semi-supervised: 1pct 100.0 % – –']


def test_pictures_say_what_they_are_of(run):
  for name in ('linear_confusion', 'linear_moco_confusion', 'segment_camvid_predictions', 'my_own'):
    shutil.copy(run / 'figures' / 'neighbours.png', run / 'figures' / f'{name}.png')
  assert [picture['alt'] for picture in Reader(written(run)).all('img')] == [
    'Linear classifier. Confusion: true classes in rows, predicted ones in columns.',
    'Linear classifier: moco. Confusion: true classes in rows, predicted ones in columns.',
    'My own', 'Images, and the training images whose features are nearest.',
    'Segmentation: camvid. Images, their masks, and the predicted masks.']


def test_a_picture_that_cannot_be_read_is_left_out(run):
  (run / 'figures' / 'features.png').mkdir()
  assert [picture['alt'] for picture in Reader(written(run)).all('img')] == [
    'Images, and the training images whose features are nearest.']


def test_figures_that_no_axis_can_reach_are_left_out():
  reports = [{'step': step, 'epoch': step / 4, 'loss': (-1)**step * 1.7e308, 'grad_norm': -math.inf,
              'alignment': (-1)**step * 9e29, 'knn_top1': 0.5, 'knn_top1_random': math.inf}
             for step in range(4)]
  drawn = curves.panels(reports)
  assert [(title, len(series)) for title, series in drawn] == [
    ('kNN top-1 (%)', 1), ('Alignment (lower: views closer)', 1)]
  for title, series in drawn:
    assert 'nan' not in curves.figure(title, series)


def test_names_are_text_whatever_they_are(run, tiny_config):
  before = Reader(written(run))
  tiny_config.data.dir = f'/home/me/{HOSTILE}'
  with tiny_config.unlocked():
    tiny_config[HOSTILE] = {HOSTILE: HOSTILE}
  (run / 'config.json').write_text(tiny_config.to_json())
  (run / '<b>&amp;.json').write_text(json.dumps({HOSTILE: {HOSTILE: [HOSTILE]}, 'n': '"\'><b>'}))
  (run / 'figures' / '"><b>.png').write_bytes((run / 'figures' / 'curves.png').read_bytes())
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': 6, 'epoch': 3, HOSTILE: 1.}) + '\n')
  page = Reader(written(run))
  assert len(page.all('script')) == 1
  assert len(page.all('b')) == len(before.all('b')) + 1  # The title of one more panel.
  assert '<b>&amp;.json' in page.text
  assert page.text.count(HOSTILE) > before.text.count(HOSTILE) == 1
  assert '/home/me' not in page.text


@pytest.mark.parametrize('unfinished', ['{"step": 5, "epo', '{}', '[]', '7', '{"step": "5", "epoch": null}',
                                        '{"step": 5, "epoch": NaN}'])
def test_a_run_that_is_under_way(run, unfinished):
  for name in ('summary.json', 'segment_roads.json'):
    (run / name).unlink()
  shutil.rmtree(run / 'figures')
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(unfinished)
  page = Reader(written(run))
  assert 'unfinished, last report at step 4, epoch 2' in page.text
  assert 'Nothing has been measured yet' in page.text
  assert len(page.all('img')) == 0
  (run / 'metrics.jsonl').unlink()
  page = Reader(written(run))
  assert 'unfinished, no report yet' in page.text
  assert not page.all('figure')


def test_a_run_that_goes_on_after_its_summary(run):
  assert 'finished after 6 steps' in Reader(written(run)).text
  with (run / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 7, "epoch": 3.5}\n')
  page = Reader(written(run)).text
  assert 'goes on after the 6 steps of its summary, last report at step 7, epoch 3.5' in page
  assert 'finished' not in page
  (run / 'summary.json').write_text('{"step": "all"}')
  assert 'finished' in Reader(written(run)).text


def test_settings_and_figures_are_published_without_places(run, tiny_config, tmp_path):
  tiny_config.data.dir, tiny_config.data.cache = 'clients/secret/photos', '/var/cache'
  (run / 'config.json').write_text(tiny_config.to_json())
  figures = {'encoder': f'{tmp_path}/a.pkl', 'of': {'x': ['gs://b/c']}, 'iou': {'run': 0.5, 'dir': 0.25}}
  (run / 'knn.json').write_text(json.dumps(figures))
  found = read_run(run)
  assert found.settings['data']['dir'] == 'photos'
  assert 'cache' not in found.settings['data']
  assert 'run' not in found.settings
  assert found.evaluations['knn'] == {**figures, 'encoder': 'a.pkl', 'of': {'x': ['c']}}


@pytest.mark.parametrize(('file', 'content', 'answer'), [
  ('config.json', '{"method": ', r'config\.json cannot be read'),
  ('config.json', '{}', 'is no run'),
  ('knn.json', '{"knn_top1": ', r'knn\.json cannot be read'),
  ('knn.json', '[1]', r'knn\.json cannot be read'),
  ('metrics.jsonl', '{"step": 1, "epoch": 1}\n{"st\n{"step": 3, "epoch": 1}', r'metrics\.jsonl .* in line 2'),
  ('metrics.jsonl', '{"step": 1}\n{"step": 3, "epoch": 1}', r'in line 1 \(it lacks the numbers step'),
  ('report.html/x', '', r'report\.html cannot be written'),
])
def test_what_is_broken_is_named(run, file, content, answer):
  (run / file).parent.mkdir(exist_ok=True)
  (run / file).write_text(content)
  with pytest.raises(UserError, match=answer) as error:
    main.report(run, run / 'report.html')
  assert len(str(error.value).splitlines()) == 1
  assert not list(run.glob('*.tmp'))


def test_the_command_writes_beside_the_run_and_over_an_older_page(run, monkeypatch, capsys):
  (run / 'report.html').write_text('older')
  monkeypatch.setattr(sys, 'argv', ['report', str(run)])
  main.command()
  assert capsys.readouterr().out == f'{run / "report.html"}\n'
  assert (run / 'report.html').read_text().startswith('<!doctype html>')
  monkeypatch.setattr(sys, 'argv', ['report', str(run / 'figures'), f'--out={run}/new/page.html'])
  with pytest.raises(SystemExit, match=r'^conic_jax: .*figures. is no run'):
    main.command()
  assert not (run / 'new').exists()
  monkeypatch.setattr(sys, 'argv', ['report', str(run), '--out=ftp://bucket/page.html'])
  with pytest.raises(SystemExit, match=r"^conic_jax: --out: 'ftp://bucket/page.html' is neither a path"):
    main.command()


# ---- Curves and numbers ---------------------------------------------------------------------------


def test_panels_are_of_what_the_run_reports(run):
  last = {'step': 9, 'epoch': 4.5, 'loss': math.nan, 'knn_top1': 0.5, 'knn_top1_k3': 0.5,
          'learning_rate': None, 'note': 'x'}
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps(last) + '\n')
  panels = dict(curves.panels(read_run(run).reports))
  assert list(panels) == ['Loss (nats)', 'kNN top-1 (%)', 'Learning rate', 'Of my own']
  total, instance = panels['Loss (nats)']
  assert (total.legend, instance.legend) == ('total', 'instance')
  np.testing.assert_array_equal(total.points, [[step / 2, 9 - step] for step in range(5)])
  np.testing.assert_array_equal(panels['kNN top-1 (%)'][0].points, [[4.5, 50]])


def test_baselines_are_lines_from_end_to_end(run):
  reports = [{'step': 0, 'epoch': 0., 'knn_top1_random': 0.25, 'knn_top1_pixels': 0.5,
              'probe_std_random': 0.2},
             *({'step': step, 'epoch': float(step), 'knn_top1': step / 10, 'loss_share': 0.9,
                'verdict': 'learning'} for step in (1, 2, 3))]
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(report) + '\n' for report in reports))
  panels = dict(curves.panels(read_run(run).reports))
  assert list(panels) == ['kNN top-1 (%)', 'Loss as a share of chance']
  own, random, pixels = panels['kNN top-1 (%)']
  assert [line.legend for line in (own, random, pixels)] == ['this run', 'random network', 'raw pixels']
  np.testing.assert_allclose(random.points, [[1, 25], [2, 25], [3, 25]])
  np.testing.assert_allclose(pixels.points[:, 1], 50)
  page = Reader(curves.figure('kNN', panels['kNN top-1 (%)']))
  assert len(page.all('circle')) == 3
  assert 'last this run 30; random network 25; raw pixels 50' in page.text


def test_the_verdict_stands_at_the_top(run):
  assert 'class="verdict"' not in written(run)
  probed = {'step': 5, 'epoch': 2.5, 'feature_std': 0.1, 'probe_rankme': 9., 'probe_instance_top1': 0.5,
            'probe_std': 0.5, 'verdict': 'collapsing'}
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': 4, 'epoch': 2., 'feature_std': 0.9}) + '\n' + json.dumps(probed) + '\n')
  text = written(run)
  verdict = re.search(r'<p class="verdict">(.*)</p>', text)
  assert verdict.end() < text.index('<main>')
  assert re.match('<b>Collapsing.</b> The head.*fell from 0.90 to 0.10. .* lower config.alpha', verdict[1])


def test_published_weights_are_a_column_where_they_were_measured(run):
  assert 'Published weights' not in Reader(written(run)).text
  weights = {'name': '/models/moco.pth', 'knn_top1': 0.625}
  (run / 'summary.json').write_text(json.dumps({**SUMMARY, 'baseline_weights': weights}))
  page = Reader(written(run)).text
  assert 'Published weights' in page
  assert '62.5 %' in page
  assert '/models' not in page


def test_long_curves_are_means_of_blocks():
  reports = [{'epoch': float(i), 'loss': float(i % 3)} for i in range(1000)]
  (_, (series,)), = curves.panels(reports)
  assert len(series.points) == 334
  np.testing.assert_allclose(series.points[:333], [[3 * i + 1, 1] for i in range(333)])
  np.testing.assert_allclose(series.points[333], [999, 0])


def test_points_lie_where_the_ticks_say():
  series = curves.Series('', '#123456', np.array([[0, -5], [5, 0], [10, 15.]]))
  page = Reader(curves.figure('Title', [series]))
  paths = [path['d'] for path in page.all('path') if path.get('class') == 'line']
  assert paths == ['M42.0 128.0L178.0 98.0L314.0 8.0']
  heights = [text['y'] for text in page.all('text') if text['text-anchor'] == 'end']
  assert heights == ['131.0', '101.0', '71.0', '41.0', '11.0', '141']
  for tick in ('−5', '0', '5', '10', '15', 'epoch'):
    assert tick in page.text
  assert page.all('svg')[-1]['aria-label'] == 'Title, over 10 epochs: from −5 to 15'
  values = json.loads(page.all('g')[0]['data-points'])
  assert values == [[42, 128, '0', '−5'], [178, 98, '5', '0'], [314, 8, '10', '15']]


@pytest.mark.parametrize(('low', 'high', 'most', 'ticks'), [
  (0, 15, 5, [0, 5, 10, 15]), (4.98, 9.3, 4, [4, 6, 8, 10]), (-3.4, -1.7, 4, [-3.5, -3, -2.5, -2, -1.5]),
  (0, 1.9e-6, 4, [0, 5e-7, 1e-6, 1.5e-6, 2e-6]), (3, 3, 4, [2.6, 2.8, 3, 3.2, 3.4]),
  (0, 0, 4, [-1, -.5, 0, .5, 1])])
def test_ticks_are_round_and_hold_the_values(low, high, most, ticks):
  np.testing.assert_allclose(curves.nice_ticks(low, high, most), ticks, atol=1e-12)


@pytest.mark.parametrize(('path', 'value', 'text'), [
  (('knn_top1',), 0.7703125, '77.0 %'), (('knn_top1_k20',), 1., '100.0 %'), (('iou', 'road'), 0., '0.0 %'),
  (('average_precision', 'cat'), 0.125, '12.5 %'),
  (('linear_by_learning_rate', '0.1'), 0.5, '50.0 %'), (('linear_learning_rate',), 0.1, '0.1'),
  (('map',), 0.25, '25.0 %'), (('miou',), 1.5, '1.5'), (('step',), 12048, '12,048'), (('x',), True, 'yes'),
  (('x',), None, '–'), (('x',), '', '–'), (('x',), [1, 'a'], '1, a'), (('x',), math.nan, 'nan'),
  (('x',), -2.57731, '−2.577'), (('x',), 1.888e-6, '1.89e−06'), (('x',), 13134.26, '13,134'),
  (('x',), 0., '0'),
])
def test_figures_are_written_for_people(path, value, text):
  assert formats.written(path, value) == text


@pytest.mark.parametrize(('name', 'words'), [
  ('linear_top1', 'Linear top-1'), ('knn_top1_k20', 'kNN top-1, k = 20'), ('miou', 'mIoU'), ('step', 'Step')])
def test_names_become_words(name, words):
  assert formats.words(name) == words


# ---- In a browser ---------------------------------------------------------------------------------


def browse(page, profile):
  """Opens a page; gives the document after its scripts ran, and the lines that it left in the console."""
  done = subprocess.run(
    [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
     f'--user-data-dir={profile}', '--window-size=1200,2000', '--dump-dom', page.as_uri()],
    capture_output=True, text=True, timeout=120, check=True)
  return Reader(done.stdout), [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason='there is no chromium, chromium-browser or google-chrome')
def test_a_browser_shows_the_figures_and_has_nothing_to_complain_of(run, tmp_path):
  text = written(run)
  page, console = browse(run / 'report.html', tmp_path / 'profile')
  assert console == []
  assert {figure['value'] for figure in page.all('data')} == numbers_of(SUMMARY, SEGMENT)
  assert '81.2 %' in page.text
  assert 'last total 5; instance 4' in page.text

  # The same page with the pointer on its first curve, and with mistakes: that the console is seen.
  tried = run / 'tried.html'
  tried.write_text(text.replace('</body>', '''<img src="missing.png"><script>
const curve = document.querySelector('.curve'), box = curve.getBoundingClientRect();
curve.dispatchEvent(new PointerEvent('pointermove',
  {clientX: box.left + box.width * 178 / 320, clientY: box.top + 9}));
notDefined();
</script></body>'''))
  page, console = browse(tried, tmp_path / 'profile')
  assert 'epoch 1: total 7; instance 6' in page.text
  assert any('notDefined is not defined' in line for line in console)
  assert any('missing.png' in line for line in console)
