"""Noise-contrastive estimation over a bank of rows, scored where they are stored.

The features are gathered (B × D is small); every device then scores the noise rows that it holds, one block
at a time, and a loss and a gradient per feature are summed over the devices. Rows are never gathered, and
memory grows with the noise by its ids only.

Source: InstDisc (Wu et al. 2018), §3.2, Eq. 4 to 8, without the proximal term.
"""
import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from conic_jax.hardware import local_rows
from conic_jax.hardware.mesh import split
from conic_jax.losses.known_gradient import with_gradient

_HIGHEST = jax.lax.Precision.HIGHEST
# Elements of the noise rows read at a time: 16 MiB.
_BLOCK_NUMBERS = 2 ** 22


@dataclasses.dataclass(frozen=True)
class NceSettings:
  """Settings of noise-contrastive estimation.

  Attributes:
    num_instances: N.
    samples: m, noise samples per image.
    temperature: τ.
    mesh: the mesh that features and bank are split over.
  """
  num_instances: int
  samples: int
  temperature: float
  mesh: Mesh


class NceLoss(NamedTuple):
  """Result of `nce`.

  Attributes:
    loss: float32 [B], differentiable in the features.
    normaliser: Z, float32 [].
  """
  loss: jax.Array
  normaliser: jax.Array


def draw_noise(key: jax.Array, num_images: int, noise: NceSettings) -> jax.Array:
  """Noise of each image in a batch, uniform over 0 … N − 1 with replacement: int32 [B, m].

  Depends on the key and the image's position in the batch. An image may be in its own noise, as in the paper,
  whose noise is uniform over all images.
  """
  return jax.random.randint(key, (num_images, noise.samples), 0, noise.num_instances)


def nce(bank: jax.Array, features: jax.Array, ids: jax.Array, valid: jax.Array, normaliser: jax.Array,
        key: jax.Array, noise: NceSettings) -> NceLoss:
  """The NCE loss of each image.

  P(j|f) = e^{vⱼᵀf/τ}/Z,  h(j) = P(j|f) / (P(j|f) + m/N)
  J = −log h(own) − Σ_{j in noise} log(1 − h(j)),  ∂J/∂f = [Σ_{j in noise} h(j) vⱼ − (1 − h(own)) v_own]/τ

  The bank gets no gradient.

  Args:
    bank: float32 [N', D], split over the mesh; its rows v are used as they are.
    features: f, float32 [B, D] of unit norm, split over the mesh.
    ids: int32 [B], each feature's own row; valid: bool [B]. Both split over the mesh.
    normaliser: Z, float32 []; 0 to estimate it from this batch as N times the mean of e^{vⱼᵀf/τ} over the own
      and noise rows of its valid images.
    key: this step's key.
    noise: the settings.

  Source: InstDisc, Eq. 4 to 7; the estimate of Z is Eq. 8 as in its public code.
  """
  chex.assert_rank([bank, features, ids, valid, normaliser], [2, 2, 1, 1, 0])
  chex.assert_equal_shape_prefix([features, ids, valid], 1)
  axes, temperature = noise.mesh.axis_names, noise.temperature
  gather = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True)
  scatter_sum = functools.partial(jax.lax.psum_scatter, axis_name=axes, tiled=True)

  def local(bank, features, ids, valid, normaliser, key):
    first = local_rows.first_row(len(bank), noise.mesh)
    everyone = gather(features)
    own_row = scatter_sum(local_rows.take(bank, local_rows.local_places(gather(ids), first, len(bank))))
    own_logit = jnp.sum(features * own_row, axis=1) / temperature
    drawn = draw_noise(key, len(everyone), noise)
    places = jnp.sort(local_rows.local_places(drawn, first, len(bank)), axis=1)
    over_noise = functools.partial(_over_noise, bank, everyone, places, noise)

    unknown = normaliser == 0
    masses = over_noise(lambda mass, logits, rows: mass + jnp.exp(logits).sum(axis=1),
                        jnp.zeros(len(everyone)), only_if=unknown)
    total = jnp.where(gather(valid), masses, 0).sum() + jnp.where(valid, jnp.exp(own_logit), 0).sum()
    scored = (noise.samples + 1) * jax.lax.psum(valid.sum(), axes)
    estimate = noise.num_instances * jax.lax.psum(total, axes) / jnp.maximum(scored, 1).astype(total.dtype)
    normaliser = jnp.where(unknown, estimate, normaliser)
    shift = jnp.log(normaliser * noise.samples / noise.num_instances)  # h is the sigmoid of logit − shift.

    def tell(sums, logits, rows):
      loss, pull = sums
      h = jax.nn.sigmoid(logits - shift)
      return (loss + jax.nn.softplus(logits - shift).sum(axis=1),
              pull + jnp.einsum('bk,bkd->bd', h, rows, precision=_HIGHEST))

    nothing = jnp.zeros(len(everyone)), jnp.zeros(everyone.shape)
    noise_loss, pull = map(scatter_sum, over_noise(tell, nothing))
    gradient = pull - jax.nn.sigmoid(shift - own_logit)[:, None] * own_row
    return jax.nn.softplus(shift - own_logit) + noise_loss, gradient / temperature, normaliser

  spec, everywhere = split(noise.mesh), PartitionSpec()
  loss, gradient, normaliser = jax.shard_map(
    local, mesh=noise.mesh, in_specs=(spec, spec, spec, spec, everywhere, everywhere),
    out_specs=(spec, spec, everywhere))(
    *jax.lax.stop_gradient((bank, features, ids, valid, normaliser, key)))
  return NceLoss(with_gradient(loss, features, gradient), normaliser)


def _over_noise(bank, features, places, noise, add, start, only_if=True):
  """Sums over the noise rows that this device holds.

  Args:
    bank: float32 [N'/devices, D]; features: float32 [B, D].
    places: int32 [B, m], local positions of the noise rows, ascending; past the bank for rows of other
      devices.
    noise: the settings.
    add: maps the sums so far, logits [B, k] (−∞ for a missing row) and rows [B, k, D] to the new sums.
    start: the initial sums.
    only_if: bool []; if False, nothing is added.
  """
  size = min(noise.samples, max(1, _BLOCK_NUMBERS // features.size))
  held = (places < len(bank)).sum(axis=1).max()
  places = jnp.pad(places, ((0, 0), (0, -places.shape[1] % size)), constant_values=len(bank))

  def block(index, sums):
    at = jax.lax.dynamic_slice_in_dim(places, index * size, size, axis=1)
    rows = local_rows.take(bank, at)
    logits = jnp.einsum('bd,bkd->bk', features, rows, precision=_HIGHEST) / noise.temperature
    return add(sums, jnp.where(at < len(bank), logits, -jnp.inf), rows)

  start = jax.lax.pcast(start, noise.mesh.axis_names, to='varying')
  return jax.lax.fori_loop(0, jnp.where(only_if, -(-held // size), 0), block, start)
