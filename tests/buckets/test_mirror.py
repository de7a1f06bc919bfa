"""The working copy of a folder in a bucket."""
from pathlib import Path

import pytest
from etils import epath

from conic_jax.buckets.mirror import Mirror
from conic_jax.buckets.run_folder import RunFolder


@pytest.fixture
def place(tmp_path):
  """A working copy of a folder that stands for one in a bucket."""
  (tmp_path / 'bucket').mkdir()
  return RunFolder(tmp_path / 'copy', epath.Path(tmp_path / 'bucket'))


def opened(place, said=None, sends=True):
  mirror = Mirror(place, 'config.run', sends, [].append if said is None else said.append)
  mirror.fetch()
  return mirror


def contents(folder):
  return {path.relative_to(folder).as_posix(): path.read_text() for path in Path(folder).rglob('*')
          if path.is_file()}


def test_what_the_bucket_has_is_fetched_and_takes_the_place_of_what_was_here(place):
  place.local.mkdir()
  (place.local / 'old').write_text('of an earlier life')
  (place.local / 'metrics.jsonl').write_text('longer than in the bucket')
  (place.local / 'store').mkdir()
  (place.local / 'store' / 'rows').write_text('rows')
  (place.remote / 'metrics.jsonl').write_text('in the bucket')
  opened(place).close()
  assert contents(place.local) == {'metrics.jsonl': 'in the bucket', 'store/rows': 'rows'}


def test_files_that_changed_are_sent_and_those_that_are_gone_are_removed(place):
  mirror = opened(place)
  (place.local / 'figures').mkdir()
  (place.local / 'figures' / 'a.png').write_text('a')
  (place.local / 'metrics.jsonl').write_text('one')
  (place.local / 'metrics.tmp').write_text('half')
  (place.local / 'store').mkdir()
  (place.local / 'store' / 'rows').write_text('rows')
  assert mirror.sent() is None
  assert contents(place.remote) == {'figures/a.png': 'a', 'metrics.jsonl': 'one'}
  (place.local / 'metrics.jsonl').write_text('one, two')
  (place.local / 'figures' / 'a.png').unlink()
  mirror.close()
  assert contents(place.remote) == {'metrics.jsonl': 'one, two'}


def test_what_this_process_did_not_send_stays_in_the_bucket(place):
  (place.remote / 'figures').mkdir()
  (place.remote / 'figures' / 'before.png').write_text('before')
  mirror = opened(place)
  (place.local / 'config.json').write_text('{}')
  mirror.send()
  mirror.close()
  assert contents(place.remote) == {'figures/before.png': 'before', 'config.json': '{}'}


def test_a_process_that_does_not_send_changes_nothing(place):
  mirror = opened(place, sends=False)
  (place.local / 'config.json').write_text('{}')
  mirror.send()
  assert mirror.sent() is None
  mirror.close()
  assert contents(place.remote) == {}


def test_what_cannot_be_sent_is_told_once_and_sent_with_the_next_report(place):
  said = []
  mirror = opened(place, said)
  (place.local / 'metrics.jsonl').write_text('one')
  kept = Path(place.remote).rename(Path(place.remote).with_name('away'))
  Path(place.remote).write_text('a file in its place')
  for _ in range(2):
    mirror.send()
    assert 'cannot be reached' in (mirror.sent() or '')
  assert len(said) == 1
  assert 'the training goes on' in said[0]
  Path(place.remote).unlink()
  kept.rename(place.remote)
  mirror.send()
  mirror.close()
  assert contents(place.remote) == {'metrics.jsonl': 'one'}


def test_what_cannot_be_sent_at_the_end_stays_here_and_a_line_says_where(place):
  said = []
  mirror = opened(place, said)
  assert mirror.sent() is None
  (place.local / 'metrics.jsonl').write_text('one')
  Path(place.remote).rmdir()
  Path(place.remote).write_text('a file in its place')
  mirror.close()
  assert str(place.local) in said[0]
  assert contents(place.local) == {'metrics.jsonl': 'one'}


def test_a_run_that_made_nothing_leaves_nothing_in_the_bucket(place):
  mirror = opened(place)
  (place.local / 'conic_jax.json').write_text('{}')
  mirror.close()
  assert contents(place.remote) == {}
