"""The draw of negatives: exactly so many, new for each key, none preferred."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conic_jax.losses import negatives


@pytest.mark.slow
@pytest.mark.parametrize(('num_instances', 'count'), [(1, 1), (7, 3), (1000, 100), (4099, 4099)])
def test_exactly_so_many_are_drawn(num_instances, count):
  drawn = negatives.drawn(jnp.arange(num_instances), jax.random.key(0), num_instances, count)
  assert drawn.sum() == count


def test_what_is_no_class_is_not_drawn():
  drawn = negatives.drawn(jnp.array([-1, 10, 11, 3]), jax.random.key(0), 10, 10)
  np.testing.assert_array_equal(drawn, [False, False, False, True])


def test_each_key_draws_anew_and_each_class_as_often():
  draw = jax.jit(jax.vmap(lambda key: negatives.drawn(jnp.arange(50), key, 50, 10)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
  assert len(np.unique(drawn, axis=0)) > 3900
  # Binomial: mean 800, standard deviation 25.
  assert np.abs(drawn.sum(axis=0) - 800).max() < 5 * 25.3
  together = drawn.T.astype(float) @ drawn
  pairs = together[~np.eye(50, dtype=bool)]
  assert np.abs(pairs - 4000 * 10 * 9 / (50 * 49)).max() < 6 * 12


def test_a_billion_classes_need_no_array_of_them():
  classes = jnp.array([0, 1, 999_999_999])
  assert negatives.drawn(classes, jax.random.key(0), 10 ** 9, 10 ** 9).all()
  assert not negatives.drawn(classes, jax.random.key(0), 10 ** 9, 1).all()
