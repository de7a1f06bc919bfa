"""~ in every path that a user gives."""
import ml_collections
import pytest

from conic_jax.home import expand_argument, expand_config


@pytest.mark.parametrize(('argument', 'expanded'), [
  ('~/runs/x', '/home/ada/runs/x'), ('--config.run=~/runs', '--config.run=/home/ada/runs'),
  ('--out=~', '--out=/home/ada'), ('--config.a.b=~/c d=~', '--config.a.b=/home/ada/c d=~'),
  ('runs/~/x', 'runs/~/x'), ('--config.run=runs', '--config.run=runs'), ('--steps=3', '--steps=3')])
def test_a_home_is_expanded_where_a_path_begins(argument, expanded, monkeypatch):
  monkeypatch.setenv('HOME', '/home/ada')
  assert expand_argument(argument) == expanded


def test_a_config_is_expanded_in_a_copy(monkeypatch):
  monkeypatch.setenv('HOME', '/home/ada')
  config = ml_collections.ConfigDict({'run': '~/runs', 'data': {'dir': '~', 'train': 'a~b'}, 'n': 1,
                                    'k': None})
  expanded = expand_config(config)
  assert expanded.to_dict() == {
    'run': '/home/ada/runs', 'data': {'dir': '/home/ada', 'train': 'a~b'}, 'n': 1, 'k': None}
  assert config.run == '~/runs'
  assert expand_config(expanded) is expanded
