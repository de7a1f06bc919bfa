"""Names in any script, and files that are whole."""
import resource

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from pictures import check_picture, smooth
from PIL import Image

from conic_jax import visualise
from conic_jax.visualise import style

# Arabic, Hebrew, Devanagari, Thai, Chinese; an emoji of three characters; combining marks; a writing
# direction that is never ended; what Matplotlib reads as mathematics; bytes that are no UTF-8; nothing.
NAMES = ('قطة', 'חתול', 'बिल्ली', 'แมว', '猫', '🐈‍⬛', 'e\u0301\u0323\u0308' + 9 * '\u0300', '\u202ecat',
         'a$x_{$', '\\frac{', '_cat_', '{}%s<b>', '\udcff\udc80', 'two\nlines\x00', '', 300 * 'x')


@pytest.mark.parametrize(('name', 'drawn'), [
  ('cat', 'cat'), ('a$\\_', 'a$\\_'), ('two\nlines\x00', 'two lines'), ('\udcff', '\ufffd'),
  (' \t', '(no name)'), ('', '(no name)'),
  (24 * 'x', 24 * 'x'), (25 * 'x', 23 * 'x' + '…'), ('क\u200dष', 'क\u200dष')])
def test_names_fit_on_a_line(name, drawn):
  assert style.shown_name(name) == drawn


def views(out, names):
  column = visualise.Column('image', len(names) * [smooth()])
  visualise.views_picture([column], np.zeros((len(names), 0, 4)), names, None, out)


def masks(out, names):
  classes = np.arange(16 * len(names), dtype=np.uint8).reshape(16, -1) % len(names)
  visualise.segmentation_picture([smooth()[:16, :len(names)]], [classes], [classes], names, out)


def confusions(out, names):
  visualise.confusion_picture(np.ones((len(names), len(names)), int), names, out)


def points(out, names):
  features = np.random.default_rng(0).normal(size=(40, 4))
  visualise.feature_map(features, np.arange(40) % len(names), names, out, seed=0)


def maps(out, names):
  visualise.activations_picture(smooth(1), [(name, np.ones((1, 96, 96))) for name in names], out)


@pytest.mark.slow
@pytest.mark.parametrize('draw', [views, masks, confusions, points, maps])
def test_names_in_any_script_are_drawn_without_a_warning(draw, tmp_path, capfd):
  draw(tmp_path / 'names.png', NAMES)
  check_picture(tmp_path / 'names.png')
  assert capfd.readouterr() == ('', '')


@pytest.mark.slow
def test_many_classes_with_such_names_are_listed(tmp_path):
  counts = np.random.default_rng(0).integers(0, 9, (1008, 1008))
  visualise.confusion_picture(counts, 63 * NAMES, tmp_path / 'c.png')
  check_picture(tmp_path / 'c.png')


def test_fonts_are_taken_where_they_are_installed():
  with style.drawing():
    figure = Figure()
    family = figure.text(0, 0, 'cat').get_fontfamily()
  assert family[0] == 'DejaVu Sans'
  assert set(family) <= set(font_manager.get_font_names())


@pytest.fixture
def figure():
  drawn = Figure(figsize=(3, 2))
  drawn.text(0.5, 0.5, 'words')
  return drawn


@pytest.fixture
def full_disk():
  """No file can be written further than some bytes, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_half_written_picture_does_not_replace_a_whole_one(figure, tmp_path, full_disk):
  out = tmp_path / 'x.png'
  out.write_bytes(b'whole')
  with pytest.raises(OSError, match='too large'):
    style.save(figure, out)
  assert [path.name for path in tmp_path.iterdir()] == ['x.png']
  assert out.read_bytes() == b'whole'


def test_a_picture_goes_to_a_new_folder_or_over_an_older_one(figure, tmp_path):
  out = tmp_path / 'new' / 'x.png'
  for _ in range(2):
    style.save(figure, out)
    check_picture(out)
  assert [path.name for path in out.parent.iterdir()] == ['x.png']


def test_a_large_picture_gets_fewer_dots(tmp_path, monkeypatch):
  monkeypatch.setattr(style, '_MOST_PIXELS', 50_000)
  style.save(Figure(figsize=(20, 10)), tmp_path / 'x.png')
  with Image.open(tmp_path / 'x.png') as picture:
    assert 45_000 < picture.width * picture.height <= 50_000
