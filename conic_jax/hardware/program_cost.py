"""Cost of a compiled program on one device, read from its text: products, bytes moved, collectives.

XLA's own cost analysis counts the body of a loop once and does not see into a GPU's library calls; here a
body counts as often as it runs, and all backends are read alike. A kernel's bytes are what it reads and
writes of the device's memory: of an operand that it only slices, through fusions within fusions, the slices;
of an array updated in place, the update. A Pallas kernel's products and bytes are those that it states. Of a
conditional one branch runs: the cheapest and the dearest are both at hand.
"""
import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from conic_jax.hardware.program_text import (
  Computation,
  Instruction,
  array_size,
  arrays,
  branches,
  computation_of,
  dims,
  parse,
  root_of,
  size,
  trip_count,
)

_SIXTEEN_BIT = ('f16', 'bf16')
_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
                'ragged-all-to-all', 'collective-broadcast')
# These name a value that is in memory already, or run other computations.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'call', 'conditional',
         'after-all', 'partition-id', 'replica-id', 'async-start', 'async-update', 'async-done',
         'opt-barrier', 'domain', 'add-dependency'}
# Calls of the compiler's own that move nothing.
_FREE_CALLS = {'AllocateBuffer', 'AssumeGatherIndicesInBound', 'ConcatBitcast'}
# Where the calls of Pallas kernels state their cost, a JSON object of numbers as texts.
_STATED_COSTS = {'__gpu$xla.gpu.triton': re.compile(r'serialized_metadata = "(\{[^}]*\})"'),
                 'tpu_custom_call': re.compile(r'"cost_estimate":(\{[^}]*\})')}
_VIEWS = {'dynamic-slice', 'slice', 'gather'}
_IN_PLACE = {'dynamic-update-slice', 'scatter'}
# Every entry of their result may need every entry of their operands.
_MIXING = {'dot', 'convolution', 'custom-call', 'sort', 'topk', 'fft', 'cholesky', 'triangular-solve'}


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Work of one kernel launch.

  Attributes:
    half_flops, single_flops: FLOPs of products with 16-bit factors, and with wider ones.
    bytes: read from and written to the device's memory.
    count: launches per step.
  """
  half_flops: float
  single_flops: float
  bytes: float
  count: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective: its kind, the bytes of the whole array on a device, and how often a step runs it."""
  kind: str
  bytes: int
  count: int


@dataclasses.dataclass(frozen=True)
class Choice:
  """A conditional: the cost of each of its branches, and how often a step runs one of them."""
  branches: tuple['Cost', ...]
  count: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of a step on one device.

  Attributes:
    kernels: all kernels that run, whatever the data.
    collectives: all communication, whatever the data, the largest first.
    unknown_loops: loops whose length the text does not give; their bodies count once.
    choices: the conditionals, of which the data choose a branch.
  """
  kernels: tuple[Kernel, ...]
  collectives: tuple[Collective, ...]
  unknown_loops: int
  choices: tuple[Choice, ...] = ()

  @property
  def flops(self) -> float:
    """Floating-point operations of products and convolutions, without those of the choices."""
    return sum(kernel.count * (kernel.half_flops + kernel.single_flops) for kernel in self.kernels)

  @property
  def bytes_accessed(self) -> float:
    """Bytes read from and written to the device's memory, without those of the choices."""
    return sum(kernel.count * kernel.bytes for kernel in self.kernels)


def _bytes_then_flops(cost: Cost) -> tuple[float, float]:
  return cost.bytes_accessed, cost.flops


def chosen(cost: Cost, pick: Callable[..., Cost], weight: Callable[[Cost], Any] = _bytes_then_flops) -> Cost:
  """The cost if the data always choose the cheapest branches, or always the dearest.

  Args:
    cost: a program's, with choices.
    pick: `min` or `max`.
    weight: orders branches by what they cost; gets costs without choices.

  Returns:
    A cost without choices.
  """
  kernels, communication, unknown = list(cost.kernels), list(cost.collectives), cost.unknown_loops
  for choice in cost.choices:
    branch = pick((chosen(each, pick, weight) for each in choice.branches), key=weight)
    times = lambda part, choice=choice: dataclasses.replace(part, count=part.count * choice.count)
    kernels += map(times, branch.kernels)
    communication += map(times, branch.collectives)
    unknown += branch.unknown_loops
  return Cost(tuple(kernels), _summed(communication), unknown)


def analyse(text: str) -> Cost:
  """Cost of a program.

  Args:
    text: the compiled module's text from `jax.stages.Compiled.as_text`: the program of one device.
  """
  computations, entry = parse(text)
  return _cost(entry, computations)


def _cost(entry: str, computations: dict[str, Computation]) -> Cost:
  """Cost of a computation and of those that it runs."""
  kernels: list[Kernel] = []
  communication: list[Collective] = []
  choices: list[Choice] = []
  unknown = 0
  pending = [(entry, 1)]
  while pending:
    name, count = pending.pop()
    computation = computations[name]
    for instruction in computation.values():
      communication += (Collective(*each, count)
                        for each in _collectives(instruction, computation, computations))
      if instruction.opcode == 'while':
        length = trip_count(instruction, computation, computations)
        unknown += length is None
        pending.append((computation_of(instruction, 'body'), count * (1 if length is None else length)))
      elif instruction.opcode in ('call', 'async-start'):
        pending.append((instruction.called('to_apply') or computation_of(instruction, 'calls'), count))
      elif instruction.opcode == 'conditional':
        choices.append(Choice(tuple(_cost(each, computations) for each in branches(instruction)), count))
      elif instruction.opcode not in _FREE and not instruction.opcode.endswith('-start'):
        half, single = _flops(instruction, computation, computations)
        kernels.append(Kernel(half, single, _bytes_moved(instruction, computation, computations), count))
  return Cost(tuple(kernels), _summed(communication), unknown, tuple(choices))


def _summed(communication: list[Collective]) -> tuple[Collective, ...]:
  """One entry for all collectives of a kind and size, the largest first."""
  counts: collections.Counter[tuple[str, int]] = collections.Counter()
  for each in communication:
    counts[each.kind, each.bytes] += each.count
  ordered = sorted(counts.items(), key=lambda item: -item[0][1] * item[1])
  return tuple(Collective(*key, count) for key, count in ordered)


# ---- Products -----------------------------------------------------------------------------------


def _flops(instruction: Instruction, computation: Computation,
           computations: dict[str, Computation]) -> tuple[float, float]:
  """FLOPs of an instruction's products: with 16-bit factors, and with wider ones."""
  if instruction.opcode == 'fusion':
    inner = computations[computation_of(instruction, 'calls')]
    parts = [_flops(each, inner, computations) for each in inner.values()]
    return sum(half for half, _ in parts), sum(single for _, single in parts)
  name = _target(instruction)
  operands = [computation[operand].shape for operand in instruction.operands]
  if stated := _stated_cost(instruction):
    half = any(array.kind in _SIXTEEN_BIT for shape in operands for array in arrays(shape))
    return (stated['flops'], 0) if half else (0, stated['flops'])
  if instruction.opcode == 'dot' or name.startswith('__cublas$'):
    flops = _dot_flops(instruction, operands)
  elif instruction.opcode == 'convolution' or name.startswith('__cudnn$conv'):
    flops = _convolution_flops(instruction, operands, name)
  else:
    return 0, 0
  half = next(arrays(operands[0])).kind in _SIXTEEN_BIT
  return (flops, 0) if half else (0, flops)


def _stated_cost(instruction: Instruction) -> dict[str, float]:
  """What a Pallas kernel says that it costs: 'flops' and 'bytes_accessed'; {} for all else."""
  pattern = _STATED_COSTS.get(_target(instruction))
  found = pattern and pattern.search(instruction.attributes)
  cost = json.loads(found.group(1).replace(r'\22', '"')) if found else {}
  names = 'flops', 'bytes_accessed'
  return {name: float(cost[name]) for name in names} if cost.keys() >= set(names) else {}


def _dot_flops(instruction: Instruction, operands: list[str]) -> float:
  contracting = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
  if contracting:
    axes = [int(axis) for axis in contracting.group(1).split(',') if axis]
  else:  # A library call has the numbers in its configuration.
    numbers = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes)
    axes = [int(axis) for axis in json.loads(numbers.group(1))] if numbers else []
  depth = math.prod(dims(operands[0])[axis] for axis in axes)
  return 2.0 * math.prod(dims(instruction.shape)) * depth


def _convolution_flops(instruction: Instruction, operands: list[str], target: str) -> float:
  """Two per product of an input entry and a kernel entry, padding excluded.

  Gradient calls carry the numbers of the convolution that they belong to, and have its output or its kernel
  as an operand.
  """
  result = instruction.shape
  if target == '__cudnn$convBackwardFilter':
    image, kernel, output = operands[0], result, operands[1]
  elif target == '__cudnn$convBackwardInput':
    image, kernel, output = result, operands[1], operands[0]
  else:
    image, kernel, output = operands[0], operands[1], result
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  assert labels is not None, instruction.name
  image_at, kernel_at, output_at = (
    dict(zip(order, dims(shape))) for order, shape in zip(labels.groups(), (image, kernel, output)))
  window = _window(instruction.attributes)
  total = 2.0 * output_at['b'] * output_at['f'] * kernel_at['i']
  for axis in (label for label in output_at if label.isdigit()):
    total *= _overlaps(image_at[axis], kernel_at[axis], output_at[axis],
                       **{name: values[int(axis)] for name, values in window.items()})
  return total


def _window(attributes: str) -> dict[str, list[tuple[int, ...]]]:
  """Settings of the window by name, for each of its axes."""
  found = re.search(r'window=\{([^}]*)\}', attributes)
  fields = dict(part.split('=') for part in found.group(1).split()) if found else {}
  names = {'stride': 'stride', 'pad': 'pad', 'lhs_dilate': 'image_dilation', 'rhs_dilate': 'kernel_dilation'}
  return {name: [tuple(int(number) for number in axis.split('_')) for axis in fields[field].split('x')]
          for field, name in names.items() if field in fields}


def _overlaps(image: int, kernel: int, output: int, stride: tuple[int, ...] = (1,),
              pad: tuple[int, ...] = (0, 0), image_dilation: tuple[int, ...] = (1,),
              kernel_dilation: tuple[int, ...] = (1,)) -> int:
  """Pairs of an output entry and a kernel entry, along one axis, that meet an image entry."""
  places = (np.arange(output)[:, None] * stride[0] + np.arange(kernel) * kernel_dilation[0] - pad[0])
  inside = (places >= 0) & (places <= (image - 1) * image_dilation[0]) & (places % image_dilation[0] == 0)
  return int(inside.sum())


# ---- Bytes --------------------------------------------------------------------------------------


def _bytes_moved(instruction: Instruction, computation: Computation,
                 computations: dict[str, Computation]) -> float:
  """Bytes that an instruction reads from the device's memory and writes to it."""
  shapes = [computation[name].shape for name in instruction.operands]
  if _target(instruction) in _FREE_CALLS:
    return 0
  if stated := _stated_cost(instruction):
    return stated['bytes_accessed']
  if instruction.opcode.endswith('-done'):  # Completes a copy, a slice or a collective.
    started = computation[instruction.operands[0]]
    source = size(computation[started.operands[0]].shape)
    return size(instruction.shape, in_memory=False) * (bool(source) + bool(size(instruction.shape)))
  read = _shares_read(instruction, computation, computations, 1, True)
  return sum(share * size(shape) for share, shape in zip(read, shapes)) + _bytes_written(
    instruction, computation, computations)


def _target(instruction: Instruction) -> str:
  """What a custom call calls; '' for other instructions."""
  target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
  return target.group(1) if target else ''


def _shares_read(instruction: Instruction, computation: Computation, computations: dict[str, Computation],
                 share: float, is_result: bool) -> list[float]:
  """Share of each operand that is read.

  Args:
    computation: the one of `instruction`.
    share: share of the instruction's result that is needed, from 0 to 1.
    is_result: whether the result is stored, so that an update may be in place.
  """
  operands = [computation[name] for name in instruction.operands]
  entries = [math.prod(dims(each.shape)) if each.shape[0] != '(' else 0 for each in operands]
  if instruction.opcode == 'fusion':
    return _shares_of_parameters(computations[computation_of(instruction, 'calls')], computations, share,
                                 is_result, len(operands))
  if instruction.opcode in _VIEWS:
    return [share * math.prod(dims(instruction.shape)) / max(entries[0], 1), *(share for _ in operands[1:])]
  if instruction.opcode == 'dynamic-update-slice' and is_result:
    return [0, share, *(0 for _ in operands[2:])]
  if instruction.opcode == 'scatter':
    targets = len(operands) // 2
    updated = [update / max(target, 1) for target, update in zip(entries, entries[targets + 1:])]
    return [*(updated if is_result else [share] * targets), *(share for _ in operands[targets:])]
  return [float(share > 0) if instruction.opcode in _MIXING else share] * len(operands)


def _shares_of_parameters(fused: Computation, computations: dict[str, Computation], share: float,
                          is_result: bool, count: int) -> list[float]:
  """Share of each parameter that a fusion reads for this share of its result; see `_shares_read`."""
  needed: collections.defaultdict[str, float] = collections.defaultdict(float)
  stored = set(_results(fused)) if is_result else set()
  needed[root_of(fused).name] = share
  read = [0.0] * count
  for instruction in reversed(fused.values()):  # Users come after what they use.
    part = min(needed[instruction.name], 1)
    if instruction.opcode == 'parameter':
      read[int(instruction.argument)] = part
    elif part:
      shares = _shares_read(instruction, fused, computations, part, instruction.name in stored)
      for name, of_operand in zip(instruction.operands, shares):
        needed[name] += of_operand
  return read


def _results(fused: Computation) -> Iterator[str]:
  """Names of what a fusion stores, seen through bitcasts."""
  root = root_of(fused)
  for value in ([fused[name] for name in root.operands] if root.opcode == 'tuple' else [root]):
    yield _seen_through_bitcasts(value, fused).name


def _seen_through_bitcasts(value: Instruction, computation: Computation) -> Instruction:
  while value.opcode == 'bitcast':
    value = computation[value.operands[0]]
  return value


def _bytes_written(instruction: Instruction, computation: Computation,
                   computations: dict[str, Computation]) -> float:
  """Bytes that an instruction writes; of an update in place, those of the update."""
  if instruction.opcode == 'fusion':
    inner = computations[computation_of(instruction, 'calls')]
    root = root_of(inner)
    values = [inner[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    return sum(_bytes_written(_seen_through_bitcasts(each, inner), inner, computations)
               for each in values if size(each.shape))
  if not size(instruction.shape):
    return 0
  if instruction.opcode == 'dynamic-update-slice':
    return size(computation[instruction.operands[1]].shape, in_memory=False)
  if instruction.opcode == 'scatter':
    updates = instruction.operands[len(instruction.operands) // 2 + 1:]
    return sum(size(computation[name].shape, in_memory=False) for name in updates)
  if _target(instruction).startswith(('__cublas$', '__cudnn$')):  # The rest of the tuple is scratch memory.
    return array_size(next(arrays(instruction.shape)))
  return size(instruction.shape)


# ---- Collectives --------------------------------------------------------------------------------


def _collectives(instruction: Instruction, computation: Computation,
                 computations: dict[str, Computation]) -> Iterator[tuple[str, int]]:
  """(kind, bytes) of the collectives in an instruction, including those inside a fusion."""
  if instruction.opcode == 'fusion':
    inner = computations[computation_of(instruction, 'calls')]
    for each in inner.values():
      yield from _collectives(each, inner, computations)
  kind = instruction.opcode.removesuffix('-start')
  if kind in _COLLECTIVES:
    given = sum(size(computation[name].shape, in_memory=False) for name in instruction.operands)
    result = size(instruction.shape, in_memory=False)
    if instruction.opcode.endswith('-start') and result > given:  # Some results include the operands.
      result = max(result - given, given)
    yield kind, max(given, result)
