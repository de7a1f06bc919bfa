"""Paths in buckets, and what is wrong with them in words."""
import importlib.util

import pytest

from conic_jax.buckets.bucket import checksum, files_below, in_words, is_remote, is_url, move, open_path, size
from conic_jax.buckets.run_folder import run_folder, working_copy
from conic_jax.errors import UserError
from conic_jax.run.claim import check_is_run


def test_urls_and_paths_are_told_apart(tmp_path):
  assert is_url('gs://bucket/run')
  assert is_url('https://example.org')
  assert not is_url(tmp_path)
  assert not is_remote(tmp_path)


@pytest.mark.parametrize('url', ['https://example.org/run', 'gs://', 'hdfs://a/b'])
def test_a_url_of_no_bucket_is_refused(url):
  with pytest.raises(UserError, match=r'give a folder, gs://BUCKET/PATH or s3://BUCKET/PATH'):
    open_path(url, 'config.run')


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"needs the package s3fs: pip install 'conic_jax\[s3\]'"):
    open_path('s3://bucket/run', 'config.run')


def test_files_of_a_bucket_are_written_listed_moved_and_summed(bucket):
  folder = open_path(bucket, 'test')
  (folder / 'a' / 'b.txt').write_text('hello')
  (folder / 'c.txt').write_text('hello')
  assert is_remote(folder)
  assert sorted(str(path) for path in files_below(folder)) == [f'{bucket}/a/b.txt', f'{bucket}/c.txt']
  assert size(folder / 'c.txt') == 5
  assert checksum(folder / 'c.txt') == checksum(folder / 'a' / 'b.txt')
  (folder / 'c.txt').write_text('other')
  assert checksum(folder / 'c.txt') != checksum(folder / 'a' / 'b.txt')
  move(folder / 'a', folder / 'away' / 'a')
  assert (folder / 'away' / 'a' / 'b.txt').read_text() == 'hello'
  assert not (folder / 'a').exists()


@pytest.mark.parametrize('kind', ['gs', 's3'])
def test_a_bucket_that_is_missing_is_named(kind, known):
  with pytest.raises(UserError, match=r"there is no bucket 'nothing-here'.*make it, or mend the name"), \
       in_words(f'{kind}://nothing-here/run', 'config.run'):
    (open_path(f'{kind}://nothing-here/run', 'config.run') / 'file').write_text('hello')


@pytest.mark.parametrize(('error', 'words'), [
  (PermissionError('Forbidden'), 'may not read and write .Forbidden.: ask for the right to'),
  (OSError('Anonymous caller does not have storage.objects.create access'), 'no credentials.*gcloud auth'),
  (ConnectionRefusedError(111, 'Connection refused'), 'cannot be reached .*look at the network')])
def test_what_a_client_raises_becomes_a_sentence(error, words):
  with pytest.raises(UserError, match=f"config.run is 'gs://bucket/run', .*{words}"), \
       in_words('gs://bucket/run', 'config.run'):
    raise error


def test_a_run_in_a_bucket_has_a_working_copy_for_each_process(known):
  place = run_folder('gs://bucket/runs/mine/', 'config.run')
  assert str(place) == str(place.large) == 'gs://bucket/runs/mine'
  assert place.local == working_copy('gs://bucket/runs/mine')
  assert place.local.name.startswith('mine-')
  assert run_folder('gs://bucket/runs/mine', 'config.run', 1).local != place.local
  assert working_copy('s3://bucket/runs/mine') != place.local


def test_a_run_on_this_machine_is_its_folder(tmp_path):
  place = run_folder(str(tmp_path)) / 'part'
  assert place.local == place.large == tmp_path / 'part'


def test_a_file_in_place_of_a_run_is_refused_and_so_is_what_is_no_run(bucket):
  folder = open_path(bucket, 'test')
  (folder / 'file').write_text('hello')
  with pytest.raises(UserError, match=f"config.run is '{folder}/file', which is a file: give a folder"):
    check_is_run(folder / 'file', 'config.run')
  with pytest.raises(UserError, match='which is no run and holds file'):
    check_is_run(folder, 'config.run')
  check_is_run(folder / 'new', 'config.run')


def test_a_run_of_a_newer_version_is_refused(bucket):
  folder = open_path(bucket, 'test')
  (folder / 'conic_jax.json').write_text('{"format": 99}')
  with pytest.raises(UserError, match=r'says that this run has format 99.*use the newer version'):
    check_is_run(folder, 'config.run')
