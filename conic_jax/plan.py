"""Plans a training for hardware that need not be present, from the compiled train step.

  python -m conic_jax.plan --config=configs/one_million.py --topology=64xV100-32GB
  python -m conic_jax.plan --config=configs/one_million.py --topology=v5e:8x8 \
    --config.num_instances=1281167 --json plan.json
  python -m conic_jax.plan --config=configs/one_million.py --topology=64xV100-32GB --largest-n

The step is the training's own, compiled from shapes by the hardware's compiler; nothing is allocated. FLOPs
count matrix products and convolutions; the time estimates are lower bounds.
"""
import dataclasses
import functools
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from conic_jax import command_line, methods, optim, recipe
from conic_jax.data import sources
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware import program_cost, topologies
from conic_jax.hardware.topologies import Topology
from conic_jax.methods import Method
from conic_jax.pretraining import gradients, settings, train_step, warm_start
from conic_jax.run.json_file import write_json
from conic_jax.terminal import print_line

# Ids are int32.
_MOST_INSTANCES = 2**31 - 1
_SEARCH_FROM = 1_000_000
_NO_TILING = "Couldn't find output tile sizes"
# The share of a GPU's memory that JAX takes by default.
_GPU_SHARE = 0.75
# Number of images of known data sets and splits, for plans made before the images are there.
_TRAINING_IMAGES = {('imagenet2012', 'train'): 1_281_167, ('cifar10', 'train'): 50_000}
_USAGE = ('usage: python -m conic_jax.plan --config=FILE[:PRESET] --topology=TOPOLOGY [--json=FILE] '
          '[--largest-n] [--config.num_instances=N] [--config.FIELD=VALUE …]. '
          'Topologies: 64xV100-32GB, 8xA100-80GB, 8xH100-80GB, v4:4x4x4, v5e:8x8, v5p:4x4x4, v6e:8x8, cpu:8.')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one device needs for a step; fields are None if the compiler rejected the program for its size.

  Attributes:
    topology, method, dtype, batch_size, num_instances: what was compiled.
    num_devices: devices in the topology.
    fits: whether the peak is within the limit.
    peak_bytes: peak memory of the step, or of the program before each epoch if that is larger: arguments,
      temporaries, and results that do not alias an argument.
    epoch_peak_bytes: peak memory of the program before each epoch; None if there is none.
    limit_bytes: memory of the device, less the reserve.
    arguments_bytes, temp_bytes: state and batch; temporaries of the step.
    flops, bytes_accessed: of a step, counting every loop iteration, and of each conditional the dearest
      branch.
    unknown_loops: loops of unknown length; their bodies count once.
    collectives: `kind`, `bytes` of the whole array on a device, `count` per step.
    compute_seconds: time of the products at the hardware's peak.
    memory_seconds: time to move the bytes at the memory's bandwidth.
    kernel_seconds: the larger of the two for each kernel, summed.
    memory_bound_seconds: the part of `kernel_seconds` in kernels that wait for memory rather than products.
    communication_seconds: time of the collectives around a ring, without overlap.
    bound: what takes the largest part of the step: 'products', 'memory' or 'collectives'.
    least: FLOPs, bytes, times and bound under the same names, of each conditional the cheapest branch.
    compile_seconds: compile time on this machine.
  """
  topology: str
  method: str
  dtype: str
  batch_size: int
  num_instances: int
  num_devices: int
  fits: bool
  peak_bytes: int | None
  limit_bytes: int
  compile_seconds: float
  arguments_bytes: int | None = None
  temp_bytes: int | None = None
  flops: float | None = None
  bytes_accessed: float | None = None
  epoch_peak_bytes: int | None = None
  unknown_loops: int = 0
  collectives: tuple[dict[str, Any], ...] = ()
  compute_seconds: float | None = None
  memory_seconds: float | None = None
  kernel_seconds: float | None = None
  memory_bound_seconds: float | None = None
  communication_seconds: float | None = None
  bound: str | None = None
  least: dict[str, Any] | None = None


# ---- One plan -----------------------------------------------------------------------------------


def plan(config: Any, where: Topology, mesh: jax.sharding.Mesh, num_instances: int) -> Plan:
  """Compiles the train step of a config for a topology.

  Args:
    config: config of a pretraining.
    where: the topology.
    mesh: mesh over its devices.
    num_instances: N.

  Raises:
    UserError: if a setting is wrong.
  """
  dtype = meshes.compute_dtype(config.dtype, mesh.devices.flat[0])
  lowered = lower_step(config, mesh, num_instances, dtype, where.platform)
  start = time.perf_counter()
  known: Callable[..., Plan] = functools.partial(
    Plan, topology=where.name, method=config.method, dtype=dtype.name, batch_size=config.batch_size,
    num_instances=num_instances, num_devices=mesh.size, limit_bytes=where.limit_bytes)
  before_epoch = lower_epoch(config, mesh, num_instances, dtype, where.platform)
  try:
    compiled = compile_for(lowered)
    epoch_peak = before_epoch and peak_bytes(compile_for(before_epoch).memory_analysis())
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    peak = refused_bytes(str(error), state_bytes(config, mesh, num_instances))
    return known(fits=False, peak_bytes=peak, compile_seconds=time.perf_counter() - start)
  seconds = time.perf_counter() - start
  memory: Any = compiled.memory_analysis()
  cost = program_cost.analyse(compiled.as_text() or '')
  weight = functools.partial(_weight, where=where)
  least, most = (program_cost.chosen(cost, pick, weight) for pick in (min, max))
  peak = max(peak_bytes(memory), epoch_peak or 0)
  return known(
    fits=peak <= where.limit_bytes, peak_bytes=peak, epoch_peak_bytes=epoch_peak, compile_seconds=seconds,
    arguments_bytes=memory.argument_size_in_bytes, temp_bytes=memory.temp_size_in_bytes,
    unknown_loops=most.unknown_loops, collectives=tuple(map(dataclasses.asdict, most.collectives)),
    least=_figures(least, where), **_figures(most, where))


def compile_for(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles a program for the devices that it was lowered for."""
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if _NO_TILING not in str(error):
      raise
    # Where a GPU is present, cuBLAS takes the products that Triton has no tiling for.
    return lowered.compile(compiler_options={'xla_gpu_enable_triton_gemm': False})


def lower_step(config: Any, mesh: jax.sharding.Mesh, num_instances: int, dtype: jnp.dtype,
               platform: str) -> jax.stages.Lowered:
  """The train step as `pretrain` makes it, lowered for a platform from shapes."""
  method, optimizer, shapes, shardings = _setting(config, mesh, num_instances, dtype)
  sampler = Sampler(num_instances, config.batch_size, config.seed, **config.sampler)
  schedule = optim.make_schedule(config.optimizer, config.epochs, sampler.steps_per_epoch)
  step = train_step.jit_step(
    train_step.make_step(method, optimizer, schedule, config.seed, sampler.steps_per_round, dtype,
                         gradients.chosen(config, method, mesh)),
    shardings, mesh)
  return step.trace(shapes, batch_shapes(method, config.batch_size)).lower(lowering_platforms=(platform,))


def lower_epoch(config: Any, mesh: jax.sharding.Mesh, num_instances: int, dtype: jnp.dtype,
                platform: str) -> jax.stages.Lowered | None:
  """The program before the first step of every epoch, lowered from shapes; None if there is none."""
  method, _, shapes, shardings = _setting(config, mesh, num_instances, dtype)
  prepare = train_step.jit_before_epoch(method, shardings)
  return None if prepare is None else prepare.trace(shapes).lower(lowering_platforms=(platform,))


def _setting(config, mesh, num_instances, dtype):
  """The method, the optimizer, and the shapes and shardings of the train state."""
  method = methods.make(config, num_instances, mesh, dtype)
  optimizer = optim.make_optimizer(config.optimizer)
  shapes = jax.eval_shape(lambda: train_step.init_state(method, optimizer, config.seed, dtype))
  return method, optimizer, shapes, train_step.state_shardings(shapes, method, mesh)


def batch_shapes(method: Method, batch_size: int) -> dict[str, Any]:
  """Shapes of the batch fields that the step reads."""
  of = lambda dtype, *shape: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
  count = sum(group.count for group in method.views)
  batch = {
    'views': tuple(of(jnp.uint8, group.count, group.size, group.size, 3) for group in method.views),
    'id': of(jnp.int32), 'valid': of(jnp.bool), 'crop': of(jnp.float32, count, 4),
    'flip': of(jnp.bool, count)}
  return {**batch, **train_step.host_input_shapes(method, batch_size)}


def peak_bytes(memory: Any) -> int:
  """Memory of a program: arguments, temporaries, and results that do not alias an argument."""
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return memory.argument_size_in_bytes + memory.temp_size_in_bytes + fresh


def refused_bytes(message: str, arguments: int) -> int | None:
  """The memory that a rejected program would have needed, from the compiler's error message.

  Args:
    message: the error message, which states the total memory or that of the temporaries.
    arguments: bytes of the program's arguments.
  """
  size = r'([\d.]+)([KMGT]?)'
  total = re.search(rf'Used {size} of', message)
  found = total or re.search(rf'temporaries \({size}\) exceeds', message)
  if found is None:
    return None
  said = round(float(found.group(1)) * 1024 ** ' KMGT'.index(found.group(2) or ' '))
  return said if total else said + arguments


def _figures(cost: program_cost.Cost, where: Topology) -> dict[str, Any]:
  """What a cost without choices amounts to, as fields of `Plan`."""
  return {'flops': cost.flops, 'bytes_accessed': cost.bytes_accessed, **roofline(cost, where)}


def _weight(cost: program_cost.Cost, where: Topology) -> tuple[float, ...]:
  """Orders the branches of a conditional: by time, or on unknown hardware by bytes."""
  times = roofline(cost, where)
  seconds = times.get('kernel_seconds', 0) + times.get('communication_seconds', 0)
  return seconds, cost.bytes_accessed, cost.flops


def roofline(cost: program_cost.Cost, where: Topology) -> dict[str, Any]:
  """Lower bounds on the time of a step, and what bounds it, as fields of `Plan`; {} for unknown hardware."""
  hardware = where.hardware
  if not hardware.bandwidth:
    return {}
  counts = np.array([kernel.count for kernel in cost.kernels], float)
  compute = counts * [kernel.half_flops / hardware.half_flops + kernel.single_flops / hardware.single_flops
                      for kernel in cost.kernels]
  memory = counts * [kernel.bytes / hardware.bandwidth for kernel in cost.kernels]
  communication = sum(each.count * ring_seconds(each, where) for each in cost.collectives)
  waiting = float(memory[memory > compute].sum())
  kernels = float(np.maximum(compute, memory).sum())
  parts = {'products': kernels - waiting, 'memory': waiting, 'collectives': communication}
  return {
    'compute_seconds': float(compute.sum()), 'memory_seconds': float(memory.sum()),
    'kernel_seconds': kernels, 'memory_bound_seconds': waiting, 'communication_seconds': communication,
    'bound': max(parts, key=lambda name: parts[name])}


def ring_seconds(collective: program_cost.Collective, where: Topology) -> float:
  """Seconds that a collective takes on the links within hosts and then on those between hosts."""
  passes = 2 if collective.kind == 'all-reduce' else 1
  shares = lambda parts: (parts - 1) / parts
  seconds = shares(where.num_devices) / where.hardware.link
  if where.hosts > 1:
    seconds += shares(where.hosts) / where.hardware.network
  return passes * collective.bytes * seconds


# ---- The most classes ---------------------------------------------------------------------------


def largest(measure: Callable[[int], Plan], start: int, row_bytes: float, least: int = 1000) -> list[Plan]:
  """Searches for the most instances that fit, among numbers with three significant digits.

  Memory grows linearly in N; the search ends when one number fits and the next does not.

  Args:
    measure: makes the plan for N instances.
    start: first N to try.
    row_bytes: minimum memory per instance on a device.
    least: smallest N to consider.

  Returns:
    All plans, in search order.
  """
  plans: list[Plan] = []
  fitting, over, number = 0, _MOST_INSTANCES + 1, _three_digits(max(start, least))
  while True:
    plans.append(measure(number))
    if plans[-1].fits:
      fitting = number
    else:
      over = number
    first, last = _after(fitting) if fitting else least, _three_digits(over - 1)
    if first > last:
      return plans
    guess = _crossing(plans, row_bytes)
    bracketed = fitting and over <= _MOST_INSTANCES
    if plans[-1].peak_bytes is None or (bracketed and plans[-1].fits == plans[-2].fits):
      guess = (fitting + over) // 2  # No line, or its crossing did not reach the other side.
    number = min(max(_three_digits(guess), first), last)


def _three_digits(number: int) -> int:
  """Rounds down to three significant digits."""
  unit = 10 ** max(len(str(number)) - 3, 0)
  return number // unit * unit


def _after(number: int) -> int:
  """The next number with three significant digits."""
  return number + 10 ** max(len(str(number)) - 3, 0)


def _crossing(plans: list[Plan], row_bytes: float) -> int:
  """N where the line through the two plans nearest the limit reaches it; one plan takes slope `row_bytes`."""
  known = sorted((abs(each.peak_bytes - each.limit_bytes), each.num_instances, each.peak_bytes)
                 for each in plans if each.peak_bytes is not None)
  if not known:
    return 0
  _, near, near_peak = known[0]
  slope = row_bytes
  if len(known) > 1:
    _, far, far_peak = known[1]
    slope = max((far_peak - near_peak) / (far - near), row_bytes / 2)
  room = plans[0].limit_bytes - near_peak
  return max(0, int(near + room / max(slope, 1e-3)))


def bytes_a_row(config: Any, mesh: jax.sharding.Mesh) -> float:
  """Bytes that each instance adds to a device's state."""
  few, many = _SEARCH_FROM, 2 * _SEARCH_FROM
  return (state_bytes(config, mesh, many) - state_bytes(config, mesh, few)) / (many - few)


def state_bytes(config: Any, mesh: jax.sharding.Mesh, num_instances: int) -> int:
  """Bytes of the train state on one device."""
  dtype = meshes.compute_dtype(config.dtype, mesh.devices.flat[0])
  _, _, shapes, shardings = _setting(config, mesh, num_instances, dtype)
  of = lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(jax.tree.leaves(jax.tree.map(of, shapes, shardings)))


# ---- The answer ---------------------------------------------------------------------------------


def report(made: Plan) -> str:
  """The plan as text."""
  gb = lambda number: 'unknown' if number is None else f'{number / 1e9:.2f} GB'
  lines = [f'{made.method} on {made.topology}: {made.num_instances:,} instances, batch {made.batch_size}, '
           f'{made.dtype}; compiled in {made.compile_seconds:.0f} s',
           f'memory of a device: peak {gb(made.peak_bytes)} of {gb(made.limit_bytes)} '
           f'({topologies.KEPT_BACK:.0%} more is kept back): {"fits" if made.fits else "DOES NOT FIT"}']
  if made.peak_bytes is None or made.flops is None or made.bytes_accessed is None:
    return '\n'.join([*lines, '  the compiler refused the program for its size'])
  lines.append(f'  arguments {gb(made.arguments_bytes)}, temporaries {gb(made.temp_bytes)}')
  if made.epoch_peak_bytes:
    lines.append(f"  before the first step of an epoch {gb(made.epoch_peak_bytes)}")
  where = topologies.parse(made.topology)
  if where.platform == 'cuda' and made.fits and made.peak_bytes > _GPU_SHARE * where.hardware.memory:
    lines.append(f'  run it with XLA_PYTHON_CLIENT_MEM_FRACTION={1 - topologies.KEPT_BACK}, as JAX takes '
                 f'{_GPU_SHARE:.0%} of a GPU by default')
  lines += _step_lines(made)
  lines += ['collectives of a step:      count × bytes of the array']
  lines += [f'  {each["kind"]:<20} {each["count"]:>9} × {each["bytes"]:,}' for each in made.collectives]
  return '\n'.join(lines)


def _step_lines(made: Plan) -> list[str]:
  """Work and time of a step, and what bounds it; from the least to the most where the data choose."""
  assert made.least is not None
  both = made.least, dataclasses.asdict(made)
  span = lambda shows, unit: ' to '.join(dict.fromkeys(f'{shows(figures):{unit}}' for figures in both))
  work = (f'{span(lambda figures: figures["flops"] / 1e12, ".3f")} TFLOP, '
          f'{span(lambda figures: figures["bytes_accessed"] / 1e9, ".2f")} GB moved')
  lines = [f'a step on a device: {work}']
  if ' to ' in work:
    lines.append('  with the cheapest and with the dearest branch of every conditional, as the data choose')
  if made.unknown_loops:
    lines.append(f'  too little, as {made.unknown_loops} loops of unknown length count once')
  if made.kernel_seconds is None:
    return lines
  ms = lambda name: span(lambda figures: 1e3 * figures[name], '.1f') + ' ms'
  products = span(lambda figures: 1e3 * (figures['kernel_seconds'] - figures['memory_bound_seconds']), '.1f')
  return [*lines,
          f'  at least {ms("kernel_seconds")} for its kernels, products alone {ms("compute_seconds")}, '
          f'memory alone {ms("memory_seconds")}; collectives {ms("communication_seconds")}',
          f'  bound by {" or ".join(dict.fromkeys(figures["bound"] for figures in both))}: kernels that wait '
          f'for products take {products} ms, kernels that wait for memory {ms("memory_bound_seconds")}, '
          f'collectives {ms("communication_seconds")}']


def num_instances(config: Any) -> int:
  """N: `config.num_instances`, or the number of training images, counted or known.

  Raises:
    UserError: if N is not set and the images are neither present nor of a known data set.
  """
  if config.num_instances < 0 or config.num_instances > _MOST_INSTANCES:
    raise UserError(f'config.num_instances is {config.num_instances}; it must be from 1 to '
                    f'{_MOST_INSTANCES}, or 0 for the images of the data set.')
  if config.num_instances:
    return config.num_instances
  try:
    return sources.open_source(config.data, config.data.train).num_images
  except UserError as error:
    known = _TRAINING_IMAGES.get((config.data.name, config.data.train))
    if known is None:
      raise UserError(f'{error} A plan needs no images: give --config.num_instances=N.') from error
    print_line(f'The images of {config.data.name} are not here: a plan for its {known:,} training images '
               '(--config.num_instances=N sets another number).')
    return known


def define_flags(argv: list[str]) -> flags.FlagValues:
  """Defines the command's flags without parsing them."""
  values = flags.FlagValues()
  command_line.define_config(values, argv)
  flags.DEFINE_string('topology', None, 'The hardware.', flag_values=values)
  flags.DEFINE_string('json', None, 'Where to write the plan.', flag_values=values)
  flags.DEFINE_bool('largest-n', False, 'Search for the most instances that fit.', flag_values=values)
  return values


def run(values: flags.FlagValues) -> None:
  """Makes, prints and writes the plan that the flags ask for."""
  config = values.config
  if values.topology is None:
    raise UserError('Which hardware? Give --topology, such as --topology=64xV100-32GB or --topology=v5e:8x8.')
  if values.json and not Path(values.json).parent.is_dir():
    raise UserError(f'--json={values.json}: there is no folder {Path(values.json).parent}.')
  if config.task != 'pretrain':
    raise UserError(f"config.task is '{config.task}': a plan is made for a pretraining.")
  settings.check(config)
  where = topologies.parse(values.topology)
  topologies.prepare(where)
  mesh = meshes.make_mesh(config.mesh, topologies.devices(where))
  config, _ = settings.choose_splits(config)
  config, *_ = warm_start.open_start(config)
  if recipe.open_fields(config):
    count = config.num_instances or (_SEARCH_FROM if values['largest-n'].value else num_instances(config))
    facts = recipe.plain_facts(count, where.platform != 'cpu', mesh.size)
    config, choices = recipe.resolve(config, facts)
    if text := recipe.describe(choices, f'{count:,} images on {where.name}'):
      print_line(text)
  meshes.check_batch_size(config.batch_size, mesh)
  if not values['largest-n'].value:
    made = plan(config, where, mesh, num_instances(config))
    answer = dataclasses.asdict(made)
  else:
    plans = largest(lambda number: _announced(plan(config, where, mesh, number)),
                    config.num_instances or _SEARCH_FROM, bytes_a_row(config, mesh), config.batch_size)
    fitting = [each for each in plans if each.fits]
    made = max(fitting or plans[-1:], key=lambda each: each.num_instances)
    fields = ('num_instances', 'fits', 'peak_bytes', 'arguments_bytes', 'temp_bytes', 'limit_bytes')
    answer = dataclasses.asdict(made) | {
      'largest_n': made.num_instances if fitting else 0,
      'search': [{name: getattr(each, name) for name in fields} for each in plans]}
  print_line(report(made))
  if 'largest_n' in answer:
    print_line(f'the most instances that fit: {answer["largest_n"]:,}')
  if values.json:
    write_json(Path(values.json), answer)


def _announced(made: Plan) -> Plan:
  peak = 'refused' if made.peak_bytes is None else f'{made.peak_bytes / 1e9:.2f} GB'
  print_line(f'{made.num_instances:>14,} instances: {peak}, {"fits" if made.fits else "does not fit"}')
  return made


def command() -> None:
  """Runs the command and sets its exit code."""
  command_line.run_with_config(run, define_flags(sys.argv), _USAGE)


if __name__ == '__main__':
  command()
