"""Bytes that the plan counts, against counts by hand and XLA's own.

  python -m benchmarks.plan_bytes

Compiles each program for a CPU, a TPU v5e and an H100, none of which need be present; the compilers are
extras, `pip install -e '.[tpu,plan-gpu]'`. A count by hand is what the kernels that the compiler makes must
read and write. XLA's count is shown where it is comparable: it takes the body of a loop once, and all of an
array that a fusion gathers from or scatters to; it has none for an absent GPU.
"""
import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from benchmarks.hardware import hardware
from conic_jax import plan
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware import program_cost, topologies
from conic_jax.hardware.compiler import prepare_compiler
from conic_jax.losses import partitioned
from conic_jax.memories import instance_rows

TABLE = Path(__file__).parent / 'results' / 'plan_bytes.md'
# The topologies by platform; one device of each is used, or all for a collective.
TOPOLOGIES = {'cpu': 'cpu:4', 'tpu': 'v5e:2x2', 'cuda': '4xH100-80GB'}
XLA_COUNTS = ('cpu', 'tpu')
# Rows, too large for a TPU's on-chip memory; how many of them a loop takes at a time; those of a batch.
ROWS, DIM, CHUNK, BATCH = 2**20, 128, 2**12, 2**18
W, B, IDS = 4 * ROWS * DIM, 4 * BATCH * DIM, 4 * BATCH
# A product [X, Y] × [Y, Z], and a chain of products [X, S] × [S, S].
X, Y, Z, S, STEPS = 2**16, 2**10, 2**12, 2**11, 5
PRODUCT, RESULT = 4 * (X * Y + Y * Z + X * Z), 4 * X * Z
STATE, SQUARE = 4 * X * S, 4 * S * S
IMAGES, KERNEL = (256, 56, 56, 128), (3, 3, 128, 128)
MAPS, FILTERS = 4 * 256 * 56 * 56 * 128, 4 * 3 * 3 * 128 * 128
# The head: its rows R, the logits L of all chunks, and the features F as often as there are chunks.
HEAD_ROWS, HEAD_CHUNK, FEATURES = 2**18, 2**13, 2**10
R, L, F = 4 * HEAD_ROWS * DIM, 4 * FEATURES * HEAD_ROWS, HEAD_ROWS // HEAD_CHUNK * 4 * FEATURES * DIM
FEW = 256
FEW_LOGITS, FEW_FEATURES = 4 * FEW * ROWS, ROWS // CHUNK * 4 * FEW * DIM


@dataclasses.dataclass(frozen=True)
class Program:
  """A program and the bytes that it moves.

  Attributes:
    name: for the table.
    make: the function, for a mesh.
    arguments: shapes of its arguments.
    by_hand: bytes on each platform, or on all of them.
    least: the same with the cheapest branch of each conditional; `by_hand` if None.
    donated: the argument whose memory the result takes.
    comparable: whether XLA counts the same.
    num_devices: 1, or 4 for collectives.
  """
  name: str
  make: Callable[[Mesh], Callable]
  arguments: tuple[Any, ...]
  by_hand: int | Mapping[str, float]
  least: int | Mapping[str, float] | None = None
  donated: int | None = None
  comparable: bool = True
  num_devices: int = 1

  def count(self, platform: str, least: bool = False) -> float:
    """The count by hand on a platform."""
    counts = self.by_hand if self.least is None or not least else self.least
    return counts if isinstance(counts, int) else counts[platform]


def array(*shape: int, dtype: Any = jnp.float32) -> Any:
  """An argument."""
  return jax.ShapeDtypeStruct(shape, dtype)


# ---- The programs -------------------------------------------------------------------------------


def sum_of_chunks(rows: jax.Array) -> jax.Array:
  """Σ e^row, by chunks."""
  def chunk(index, total):
    return total + jnp.sum(jnp.exp(jax.lax.dynamic_slice_in_dim(rows, index * CHUNK, CHUNK)), 0)
  return jax.lax.fori_loop(0, ROWS // CHUNK, chunk, jnp.zeros(DIM))


def decay(rows: jax.Array) -> jax.Array:
  """Rows that shrink in place, by chunks."""
  def chunk(index, rows):
    old = jax.lax.dynamic_slice_in_dim(rows, index * CHUNK, CHUNK)
    return jax.lax.dynamic_update_slice_in_dim(rows, 0.9 * old, index * CHUNK, 0)
  return jax.lax.fori_loop(0, ROWS // CHUNK, chunk, rows)


def largest_cosines(rows: jax.Array, features: jax.Array) -> jax.Array:
  """The largest cosine of each feature, by chunks: on a TPU a fusion with fusions inside that slice."""
  def chunk(index, best):
    old = jax.lax.dynamic_slice_in_dim(rows, index * CHUNK, CHUNK)
    unit = old * jax.lax.rsqrt(jnp.sum(old * old, 1, keepdims=True))
    return jnp.maximum(best, jnp.max(features @ unit.T, 1))
  return jax.lax.fori_loop(0, ROWS // CHUNK, chunk, jnp.zeros(FEW))


def chain(unroll: bool) -> Callable:
  """Products in a loop or written out."""
  return lambda mesh: lambda x, square: jax.lax.fori_loop(
    0, STEPS, lambda _, x: jnp.tanh(x @ square), x, unroll=unroll)


def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
  """A convolution of 3 × 3."""
  return jax.lax.conv_general_dilated(images, kernel, (1, 1), 'SAME',
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def choose(which: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """One of three branches: nothing, one operand, two operands."""
  branches = [lambda a, b: a, lambda a, b: jnp.tanh(a), lambda a, b: jnp.tanh(a) * b]
  return jax.lax.switch(which, branches, a, b)


def all_reduce(mesh: Mesh) -> Callable:
  """The sum over devices of rows that each holds."""
  return jax.shard_map(lambda rows: jax.lax.psum(rows, mesh.axis_names), mesh=mesh,
                       in_specs=PartitionSpec('data'), out_specs=PartitionSpec())


def softmax(mesh: Mesh) -> partitioned.Softmax:
  """The head, with the platform's own type for products."""
  dtype = meshes.compute_dtype('auto', mesh.devices.flat[0])
  return partitioned.Softmax(HEAD_ROWS, 0.1, mesh, dtype, chunk_size=HEAD_CHUNK)


def first_pass(mesh: Mesh) -> Callable:
  """The head's loss."""
  return lambda rows, features, ids: partitioned.scores(rows, features, ids, softmax(mesh)).loss


def second_pass(mesh: Mesh) -> Callable:
  """The head's update of its rows."""
  def update(rows, features, ids, scores):
    batch = instance_rows.Classified(features, ids, jnp.full(FEATURES, 1 / FEATURES), scores)
    return instance_rows.update(rows, batch, jnp.float32(0.1), softmax(mesh), momentum=0.9, weight_decay=1e-4)
  return update


_BATCH = array(FEATURES, DIM), array(FEATURES, dtype=jnp.int32)
_OF_FEATURES = array(FEATURES)
PROGRAMS = (
  Program('elementwise', lambda mesh: lambda a, b: jnp.tanh(a) * b + a, (array(ROWS, DIM),) * 2, 3 * W),
  Program('product', lambda mesh: jnp.matmul, (array(X, Y), array(Y, Z)), PRODUCT),
  Program('product, bias, ReLU', lambda mesh: lambda a, b, bias: jax.nn.relu(a @ b + bias[None]),
          (array(X, Y), array(Y, Z), array(Z)), PRODUCT),
  # On CPU and GPU the exponentials are written and read again.
  Program('slices in a loop', lambda mesh: sum_of_chunks, (array(ROWS, DIM),),
          {'cpu': (1 + 1 + 1) * W, 'tpu': W, 'cuda': (1 + 1 + 1) * W}, comparable=False),
  Program('slices updated in place in a loop', lambda mesh: decay, (array(ROWS, DIM),), 2 * W, donated=0,
          comparable=False),
  # On a TPU the norms and the cosines read the rows; on a CPU the slice is copied, and one call does the
  # rest; on a GPU the slice is copied, unit rows are written, and the cosines written and read.
  Program('slices in nested fusions', lambda mesh: largest_cosines, (array(ROWS, DIM), array(FEW, DIM)),
          {'cpu': (2 + 1) * W + FEW_FEATURES, 'tpu': (1 + 1) * W,
           'cuda': (2 + 2 + 1) * W + FEW_FEATURES + 2 * FEW_LOGITS}, comparable=False),
  Program('gather', lambda mesh: lambda rows, ids: rows[ids],
          (array(ROWS, DIM), array(BATCH, dtype=jnp.int32)), B + IDS + B, comparable=False),
  Program('scatter, in place', lambda mesh: lambda rows, ids, update: rows.at[ids].add(update),
          (array(ROWS, DIM), array(BATCH, dtype=jnp.int32), array(BATCH, DIM)), B + IDS + B + B, donated=0,
          comparable=False),
  Program('reduction', lambda mesh: lambda rows: jnp.sum(jnp.exp(rows), 1), (array(ROWS, DIM),),
          W + 4 * ROWS),
  # On CPU and GPU the result is copied, and so is what the empty branch returns.
  Program('conditional', lambda mesh: choose, (array(dtype=jnp.int32), array(ROWS, DIM), array(ROWS, DIM)),
          {'cpu': (3 + 2) * W, 'tpu': 3 * W, 'cuda': (3 + 2) * W},
          least={'cpu': (2 + 2) * W, 'tpu': 0, 'cuda': (2 + 2) * W}, donated=1),
  # The state is copied before the loop and in every step; a TPU keeps the square on chip, a CPU writes the
  # product before its tanh.
  Program('products in a loop', chain(False), (array(X, S), array(S, S)),
          {'cpu': 2 * STATE + STEPS * (4 * STATE + SQUARE),
           'tpu': 2 * STATE + SQUARE + STEPS * (2 + 2) * STATE,
           'cuda': 2 * STATE + STEPS * ((2 + 2) * STATE + SQUARE)}, comparable=False),
  # On a CPU one call does all; on a TPU the states between the products have 16 bits.
  Program('the same without a loop', chain(True), (array(X, S), array(S, S)),
          {'cpu': 2 * STATE + SQUARE, 'tpu': 2 * STATE + (STEPS - 1) * 2 * STATE // 2 + SQUARE,
           'cuda': STEPS * (2 * STATE + SQUARE)}),
  # A TPU copies the result into the layout of the program's.
  Program('convolution', lambda mesh: convolve, (array(*IMAGES), array(*KERNEL)),
          {'cpu': 2 * MAPS + FILTERS, 'tpu': (2 + 2) * MAPS + FILTERS, 'cuda': 2 * MAPS + FILTERS}),
  Program('transposition', lambda mesh: lambda rows: jnp.transpose(rows, (2, 0, 1)),
          (array(1024, 1024, DIM),), 2 * 4 * 1024 * 1024 * DIM),
  # A TPU's tile has four rows.
  Program('rows of three', lambda mesh: lambda rows: 2 * rows, (array(8 * ROWS, 3),),
          {'cpu': 2 * 4 * 8 * ROWS * 3, 'tpu': 2 * 4 * 8 * ROWS * 4, 'cuda': 2 * 4 * 8 * ROWS * 3}),
  # A GPU sums in place, in a copy.
  Program('all-reduce', all_reduce, (array(4 * ROWS, DIM),),
          {'cpu': 2 * W, 'tpu': 2 * W, 'cuda': (2 + 2) * W}, num_devices=4),
  # On a TPU the norms and the logits read the rows. On a CPU the slice is copied, normalised in the product,
  # and the logits are written, masked and summed; on a GPU it is copied and normalised in 16 bits, and the
  # logits are written and summed.
  Program("the head's first pass", first_pass, (array(HEAD_ROWS, DIM), *_BATCH),
          {'cpu': (2 + 1) * R + F + (1 + 2 + 1) * L, 'tpu': (1 + 1) * R + F,
           'cuda': (2 + 1.5 + 0.5) * R + (1.5 + 0.5) * F + (1 + 1) * L}, comparable=False),
  # Rows on a CPU: both slices copied, norms, logits, the gradient from the rows with its projection, and two
  # updates. On a TPU: norms, the gradient with its projection, the projected and the new velocity, two reads
  # for the new rows, two updates, and a change of layout of both before and after. On a GPU: norms, unit rows
  # in 16 bits, logits, the gradient, its projection, the velocity, two updates.
  Program("the head's second pass", second_pass,
          (instance_rows.Rows(array(HEAD_ROWS, DIM), array(HEAD_ROWS, DIM)), *_BATCH, partitioned.Scores(
            _OF_FEATURES, array(FEATURES, dtype=jnp.bool), _OF_FEATURES, _OF_FEATURES, _OF_FEATURES)),
          {'cpu': (4 + 1 + 1 + 3 + 3 + 3) * R + 2 * F + (1 + 2 + 1) * L,
           'tpu': (1 + 2 + 2 + 2 + 2 + 8) * R,
           'cuda': (1 + 1.5 + 0.5 + 1 + 2 + 4 + 3 + 3) * R + (2 + 0.5 + 0.5) * F + (1 + 1.5 + 0.5) * L},
          donated=0, comparable=False),
)


# ---- The counts ---------------------------------------------------------------------------------


def compile_program(program: Program, platform: str, devices: list[Any]) -> jax.stages.Compiled:
  """Compiles a program for the first devices of a topology, or for all."""
  mesh = meshes.make_mesh(devices=devices[:program.num_devices])
  placed: dict[str, Any] = {}
  if mesh.size == 1:
    placed = {name: meshes.replicated(mesh) for name in ('in_shardings', 'out_shardings')}
  function = jax.jit(program.make(mesh), donate_argnums=() if program.donated is None else program.donated,
                     **placed)
  return plan.compile_for(function.trace(*program.arguments).lower(lowering_platforms=(platform,)))


def counts(compiled: jax.stages.Compiled) -> tuple[float, float]:
  """Our count, with the cheapest and the dearest branches."""
  cost = program_cost.analyse(compiled.as_text() or '')
  least, most = (program_cost.chosen(cost, pick).bytes_accessed for pick in (min, max))
  return least, most


def xlas_count(compiled: jax.stages.Compiled) -> float:
  """XLA's own count."""
  found: Any = compiled.cost_analysis()
  return found['bytes accessed']


def row(program: Program, platform: str, devices: list[Any]) -> str:
  """A row of the table."""
  compiled = compile_program(program, platform, devices)
  least, most = counts(compiled)
  hand = program.count(platform)
  megabytes = lambda number: f'{number / 1e6:,.1f}'
  span = lambda low, high: megabytes(high) if low == high else f'{megabytes(low)} to {megabytes(high)}'
  xla = xlas_count(compiled) if program.comparable and platform in XLA_COUNTS else None
  shown = (program.name, TOPOLOGIES[platform], span(program.count(platform, least=True), hand),
           '—' if xla is None else megabytes(xla), span(least, most), f'{most / hand:.3f}',
           '—' if xla is None else f'{most / xla:.3f}')
  print(*shown, flush=True)
  return f'| {" | ".join(shown)} |'


def main() -> None:
  """Compiles, counts, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.parse_args()
  prepare_compiler()
  found = {platform: topologies.parse(name) for platform, name in TOPOLOGIES.items()}
  for topology in found.values():
    topologies.prepare(topology)
  devices = {platform: topologies.devices(topology) for platform, topology in found.items()}
  rows = [row(program, platform, devices[platform]) for program in PROGRAMS for platform in TOPOLOGIES]
  TABLE.write_text('\n'.join([
    '# Bytes that a program moves', '', '`python -m benchmarks.plan_bytes`', '',
    f'Compiled on {hardware()}', '',
    'Megabytes that one device reads and writes: by hand, by XLA where it counts the same, and by the plan. '
    'A conditional has its cheapest and its dearest branch; the ratios are those of the dearest.', '',
    '| program | hardware | by hand | XLA | the plan | plan / hand | plan / XLA |',
    '| --- | --- | ---: | ---: | ---: | ---: | ---: |', *rows]) + '\n')


if __name__ == '__main__':
  main()
