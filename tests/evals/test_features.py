import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SPEC, VIEW, ArraySource, coloured, mean_colour

from conic_jax.errors import UserError
from conic_jax.evals.features import extract, pixels, to_host
from conic_jax.hardware.mesh import batch_sharding

LABELS = np.arange(21) % 4


def normalised(images):
  return (images / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [8, 16, 32])
def test_to_host_gives_every_row_in_the_order_of_ids(mesh, batch_size):
  images = coloured(LABELS)
  extracted = extract(mean_colour, {}, ArraySource(images, LABELS), batch_size=batch_size,
                      mesh=mesh, view=VIEW)
  features, labels, ids = to_host(extracted)
  np.testing.assert_array_equal(ids, np.arange(21))
  np.testing.assert_array_equal(labels, LABELS)
  np.testing.assert_allclose(features, normalised(images).mean((1, 2)), atol=1e-5)


def test_features_stay_split_and_padding_is_masked(mesh):
  extracted = extract(mean_colour, {}, ArraySource(coloured(LABELS), LABELS), batch_size=8,
                      mesh=mesh, view=VIEW)
  assert extracted.features.shape == (24, 3)
  assert {shard.data.shape for shard in extracted.features.addressable_shards} == {
      (24 // mesh.size, 3)}
  for part in (extracted.features, extracted.labels, extracted.ids, extracted.valid):
    assert part.sharding.is_equivalent_to(batch_sharding(mesh), part.ndim)
  assert int(extracted.valid.sum()) == 21
  assert not np.asarray(extracted.features)[~np.asarray(extracted.valid)].any()


def test_ids_ascend_on_each_device(mesh):
  extracted = extract(mean_colour, {}, ArraySource(coloured(LABELS), LABELS), batch_size=8,
                      mesh=mesh, view=VIEW)
  for ids, valid in zip(extracted.ids.addressable_shards, extracted.valid.addressable_shards,
                        strict=True):
    assert (np.diff(np.asarray(ids.data)[np.asarray(valid.data)]) > 0).all()


def test_an_undecodable_image_is_left_out(mesh8):
  source = ArraySource(coloured(LABELS), LABELS, broken=[5])
  features, _, ids = to_host(extract(mean_colour, {}, source, batch_size=8, mesh=mesh8, view=VIEW))
  np.testing.assert_array_equal(ids, np.delete(np.arange(21), 5))
  assert features.shape == (20, 3)


def test_pixels_are_the_normalised_image(mesh8):
  images = coloured(LABELS)
  features, _, _ = to_host(extract(pixels, {}, ArraySource(images, LABELS), batch_size=8,
                                   mesh=mesh8, view=VIEW))
  np.testing.assert_allclose(features, normalised(images).reshape(21, -1), atol=1e-5)


def test_pixels_of_large_images_are_averaged():
  images = np.random.default_rng(0).random((2, 128, 128, 3)).astype(np.float32)
  found = np.asarray(pixels({}, jnp.asarray(images))).reshape(2, 64, 64, 3)
  np.testing.assert_allclose(found.mean((1, 2)), images.mean((1, 2)), atol=1e-3)
  assert found.std() < 0.6 * images.std()


def test_a_second_extraction_compiles_nothing(mesh8):
  source, traced = ArraySource(coloured(LABELS), LABELS), []
  def encode(variables, images):
    traced.append(images)
    return mean_colour(variables, images)
  extract(encode, {}, source, batch_size=8, mesh=mesh8, view=VIEW)
  first = len(traced)
  extract(encode, {}, source, batch_size=8, mesh=mesh8, view=VIEW)
  assert len(traced) - first <= 1  # The shape is asked for again, the batch is not traced again.
  assert first == 2


def test_a_batch_that_cannot_be_split_is_told(mesh8):
  with pytest.raises(UserError, match='cannot be split over 8 devices'):
    extract(mean_colour, {}, ArraySource(coloured(LABELS), LABELS), batch_size=12, mesh=mesh8,
            view=VIEW)
