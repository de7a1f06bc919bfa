import signal
from pathlib import Path

import pytest

from conic_jax import visualise
from conic_jax.errors import Stopped, UserError


def raises(error):
  def draw(out):
    del out
    raise error
  return draw


@pytest.mark.parametrize(('error', 'why'), [
  (OSError(28, 'No space left on device', 'x.png'), "[Errno 28] No space left on device: 'x.png'"),
  (UserError('There are no images to show.'), 'There are no images to show'),
  (ValueError('one\n  two'), 'ValueError: one two'), (MemoryError(), 'MemoryError'),
  (UserError('of \udcff.jpg'), 'of \\udcff.jpg')])
def test_what_cannot_be_drawn_is_told_in_one_line_or_in_a_sentence(error, why):
  said = []
  assert not visualise.attempt(raises(error), Path('figures/x.png'), said.append)
  assert said == [f'Could not draw x.png ({why}).']
  with pytest.raises(UserError) as told:
    visualise.insist(raises(error), Path('x.png'), '--out')
  assert str(error) in str(told.value) or str(told.value).startswith('--out=x.png cannot be ')
  assert len(str(told.value).splitlines()) == 1


def test_what_is_drawn_needs_no_words(tmp_path):
  out, said = tmp_path / 'x.png', []
  assert visualise.attempt(Path.touch, out, said.append)
  visualise.insist(Path.touch, out, '--out')
  assert (out.exists(), said) == (True, [])


def test_a_signal_stops_a_picture_too():
  for draw in (lambda error: visualise.attempt(raises(error), Path('x.png'), print),
               lambda error: visualise.insist(raises(error), Path('x.png'), '--out')):
    with pytest.raises(Stopped):
      draw(Stopped(signal.SIGTERM, 'stopped'))
    with pytest.raises(KeyboardInterrupt):
      draw(KeyboardInterrupt())
