"""Cost of a compiled program on one device, read from its text: products, bytes moved, collectives.

XLA's own cost analysis counts the body of a loop once and does not see into a GPU's library calls; here a
body counts as often as it runs, and all backends are read alike.
"""
import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterator

import numpy as np

_ITEMSIZE = {'pred': 1, 'token': 0, 'opaque': 0, 'c64': 8, 'c128': 16}
_SIXTEEN_BIT = ('f16', 'bf16')
_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
                'ragged-all-to-all', 'collective-broadcast')
# These name a value that is in memory already, or run other computations.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'call', 'conditional',
         'after-all', 'partition-id', 'replica-id', 'async-start', 'async-update', 'async-done',
         'opt-barrier', 'domain', 'add-dependency'}
_VIEWS = {'dynamic-slice', 'slice', 'gather'}
# TPU: on-chip memory, whose traffic does not reach the HBM.
_ON_CHIP = re.compile(r'S\(1\)\}?$')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')


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
class Cost:
  """Cost of a step on one device.

  Attributes:
    kernels: all kernels that run.
    collectives: all communication, the largest first.
    unknown_loops: loops whose length the text does not give; their bodies count once.
  """
  kernels: tuple[Kernel, ...]
  collectives: tuple[Collective, ...]
  unknown_loops: int

  @property
  def flops(self) -> float:
    """Floating-point operations of products and convolutions."""
    return sum(kernel.count * (kernel.half_flops + kernel.single_flops) for kernel in self.kernels)

  @property
  def bytes_accessed(self) -> float:
    """Bytes read from and written to the device's memory."""
    return sum(kernel.count * kernel.bytes for kernel in self.kernels)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation; `attributes` is the text after the operands."""
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  argument: str
  is_root: bool

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute names."""
    found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    return found and found.group(1)


Computation = dict[str, Instruction]


def analyse(text: str) -> Cost:
  """Cost of a program.

  Args:
    text: the compiled module's text from `jax.stages.Compiled.as_text`: the program of one device.
  """
  computations, entry = parse(text)
  kernels: list[Kernel] = []
  collected: collections.Counter[tuple[str, int]] = collections.Counter()
  unknown = 0
  pending = [(entry, 1)]
  while pending:
    name, count = pending.pop()
    computation = computations[name]
    for instruction in computation.values():
      for collective in _collectives(instruction, computation, computations):
        collected[collective] += count
      if instruction.opcode == 'while':
        length = trip_count(instruction, computation, computations)
        unknown += length is None
        pending.append((_called(instruction, 'body'), count * (1 if length is None else length)))
      elif instruction.opcode in ('call', 'async-start'):
        pending.append((instruction.called('to_apply') or _called(instruction, 'calls'), count))
      elif instruction.opcode == 'conditional':
        pending += [(branch, count) for branch in _branches(instruction)]
      elif instruction.opcode not in _FREE and not instruction.opcode.endswith('-start'):
        half, single = _flops(instruction, computation, computations)
        kernels.append(Kernel(half, single, _bytes_moved(instruction, computation, computations), count))
  ordered = sorted(collected.items(), key=lambda item: -item[0][1] * item[1])
  return Cost(tuple(kernels), tuple(Collective(*key, count) for key, count in ordered), unknown)


# ---- Text ---------------------------------------------------------------------------------------


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Parses a module.

  Returns:
    Its computations by name, each a mapping of its instructions by name, in order; the name of the entry.
  """
  computations: dict[str, Computation] = {}
  entry, current = '', None
  for line in text.splitlines():
    if current is None:
      header = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
      if header:
        current = computations[header.group(2)] = {}
        entry = header.group(2) if header.group(1) else entry
    elif line.startswith('}'):
      current = None
    elif instruction := _instruction(line):
      current[instruction.name] = instruction
  return computations, entry


def _instruction(line: str) -> Instruction | None:
  head = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
  if head is None:
    return None
  rest = line[head.end():]
  end = _closing(rest) if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  rest = rest[len(opcode):]
  end = _closing(rest)
  argument = rest[1:end - 1]
  return Instruction(head.group(2), shape, opcode, tuple(re.findall(r'%([\w.\-]+)', argument)), rest[end:],
                     argument, bool(head.group(1)))


def _closing(text: str) -> int:
  """Position after the bracket that closes the first one."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return place + 1
  return len(text)


def _arrays(shape: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
  """(type, dimensions, layout) of each array of a shape."""
  for kind, dims, layout in _ARRAY.findall(shape):
    yield kind, tuple(int(dim) for dim in dims.split(',') if dim), layout


def _itemsize(kind: str) -> float:
  bits = re.search(r'\d+', kind)
  return _ITEMSIZE[kind] if kind in _ITEMSIZE else int(bits.group()) / 8 if bits else 0


def _size(shape: str, in_memory: bool = True) -> int:
  """Bytes of a shape; `in_memory` leaves out arrays on chip, to count the device's memory alone."""
  return int(sum(_itemsize(kind) * math.prod(dims) for kind, dims, layout in _arrays(shape)
                 if not (in_memory and _ON_CHIP.search(layout))))


def _dims(shape: str) -> tuple[int, ...]:
  return next(_arrays(shape))[1]


def _called(instruction: Instruction, attribute: str) -> str:
  name = instruction.called(attribute)
  assert name is not None, f'{instruction.opcode} without {attribute}'
  return name


def _branches(instruction: Instruction) -> list[str]:
  listed = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
  if listed:
    return re.findall(r'%?([\w.\-]+)', listed.group(1))
  return [_called(instruction, 'true_computation'), _called(instruction, 'false_computation')]


# ---- Loops --------------------------------------------------------------------------------------


def trip_count(loop: Instruction, computation: Computation,
               computations: dict[str, Computation]) -> int | None:
  """How often the body of a `while` runs.

  As noted by XLA; otherwise from the bound and stride of a counter that starts at 0, as in JAX's loops. None
  for other loops.

  Args:
    loop: the `while`, an instruction of `computation`.
    computations: those of the module.
  """
  noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if noted:
    return int(noted.group(1))
  start = computation[loop.operands[0]]

  def constant(value: Instruction) -> int | None:
    """Value of a scalar that is written in the loop or passed to it unchanged."""
    if value.opcode == 'get-tuple-element' and start.opcode == 'tuple':
      value = _original(start.operands[_tuple_index(value)], computation)
    return int(value.argument) if value.opcode == 'constant' and value.argument.isdigit() else None

  condition, body = (computations[_called(loop, part)] for part in ('condition', 'body'))
  test, after = _root(condition), _root(body)
  if test.opcode != 'compare' or 'direction=LT' not in test.attributes or after.opcode != 'tuple':
    return None
  counter, bound = (_original(name, condition) for name in test.operands)
  if counter.opcode != 'get-tuple-element':
    return None
  index = _tuple_index(counter)
  advance = _original(after.operands[index], body)
  terms = [_original(name, body) for name in advance.operands]
  steps = [constant(term) for term in terms if (term.opcode, _tuple_index(term)) != (counter.opcode, index)]
  stop = constant(bound)
  if advance.opcode != 'add' or len(steps) != 1 or not steps[0] or stop is None:
    return None
  return -(-stop // steps[0])


def _original(name: str, computation: Computation) -> Instruction:
  """The instruction that produced a value, seen through copies."""
  instruction = computation[name]
  while instruction.opcode in ('copy', 'copy-done', 'copy-start'):
    instruction = computation[instruction.operands[0]]
  return instruction


def _root(computation: Computation) -> Instruction:
  return next(instruction for instruction in computation.values() if instruction.is_root)


def _tuple_index(instruction: Instruction) -> int:
  found = re.search(r'index=(\d+)', instruction.attributes)
  return int(found.group(1)) if found else -1


# ---- Products -----------------------------------------------------------------------------------


def _flops(instruction: Instruction, computation: Computation,
           computations: dict[str, Computation]) -> tuple[float, float]:
  """FLOPs of an instruction's products: with 16-bit factors, and with wider ones."""
  if instruction.opcode == 'fusion':
    inner = computations[_called(instruction, 'calls')]
    parts = [_flops(each, inner, computations) for each in inner.values()]
    return sum(half for half, _ in parts), sum(single for _, single in parts)
  target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
  name = target.group(1) if target else ''
  operands = [computation[operand].shape for operand in instruction.operands]
  if instruction.opcode == 'dot' or name.startswith('__cublas$'):
    flops = _dot_flops(instruction, operands)
  elif instruction.opcode == 'convolution' or name.startswith('__cudnn$conv'):
    flops = _convolution_flops(instruction, operands, name)
  else:
    return 0, 0
  half = next(_arrays(operands[0]))[0] in _SIXTEEN_BIT
  return (flops, 0) if half else (0, flops)


def _dot_flops(instruction: Instruction, operands: list[str]) -> float:
  contracting = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
  if contracting:
    axes = [int(axis) for axis in contracting.group(1).split(',') if axis]
  else:  # A library call has the numbers in its configuration.
    numbers = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes)
    axes = [int(axis) for axis in json.loads(numbers.group(1))] if numbers else []
  depth = math.prod(_dims(operands[0])[axis] for axis in axes)
  return 2.0 * math.prod(_dims(instruction.shape)) * depth


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
    dict(zip(order, _dims(shape))) for order, shape in zip(labels.groups(), (image, kernel, output)))
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
                 computations: dict[str, Computation]) -> int:
  """Bytes that an instruction reads and writes; slices and in-place writes count only what they touch."""
  shapes = [computation[name].shape for name in instruction.operands]
  if instruction.opcode == 'fusion':
    inner = computations[_called(instruction, 'calls')]
    return _bytes_read(inner) + _bytes_written(inner)
  if instruction.opcode in _VIEWS:
    return 2 * _size(instruction.shape)
  if instruction.opcode == 'dynamic-update-slice':
    return 2 * _size(shapes[1])
  if instruction.opcode == 'scatter':
    return 3 * _size(shapes[-1])
  if instruction.opcode.endswith('-done'):  # Completes a copy, a slice or a collective.
    started = computation[instruction.operands[0]]
    source = _size(computation[started.operands[0]].shape)
    return _size(instruction.shape, in_memory=False) * (bool(source) + bool(_size(instruction.shape)))
  return _size(instruction.shape) + sum(map(_size, shapes))


def _bytes_read(fused: Computation) -> int:
  """Bytes that a fusion reads from its parameters."""
  total = 0
  for parameter in fused.values():
    if parameter.opcode != 'parameter':
      continue
    whole, parts = False, 0
    for user, first in _users(parameter.name, fused):
      if user.opcode in _VIEWS and first:
        parts += _size(user.shape, in_memory=False)
      elif not (user.opcode == 'dynamic-update-slice' and first):
        whole = True
    total += _size(parameter.shape) if whole else min(parts, _size(parameter.shape))
  return total


def _users(name: str, fused: Computation) -> Iterator[tuple[Instruction, bool]]:
  """Users of a value, seen through bitcasts, and whether it is only their first operand."""
  for user in fused.values():
    if name in user.operands:
      if user.opcode == 'bitcast':
        yield from _users(user.name, fused)
      else:
        yield user, user.operands[0] == name and name not in user.operands[1:]


def _bytes_written(fused: Computation) -> int:
  """Bytes that a fusion writes."""
  root, total = _root(fused), 0
  for value in ([fused[name] for name in root.operands] if root.opcode == 'tuple' else [root]):
    target = value
    while target.opcode == 'bitcast':
      target = fused[target.operands[0]]
    in_place = target.opcode == 'dynamic-update-slice'
    if _size(value.shape):
      total += _size(fused[target.operands[1]].shape, in_memory=False) if in_place else _size(value.shape)
  return total


# ---- Collectives --------------------------------------------------------------------------------


def _collectives(instruction: Instruction, computation: Computation,
                 computations: dict[str, Computation]) -> Iterator[tuple[str, int]]:
  """(kind, bytes) of the collectives in an instruction, including those inside a fusion."""
  if instruction.opcode == 'fusion':
    inner = computations[_called(instruction, 'calls')]
    for each in inner.values():
      yield from _collectives(each, inner, computations)
  kind = instruction.opcode.removesuffix('-start')
  if kind in _COLLECTIVES:
    given = sum(_size(computation[name].shape, in_memory=False) for name in instruction.operands)
    result = _size(instruction.shape, in_memory=False)
    if instruction.opcode.endswith('-start') and result > given:  # Some results include the operands.
      result = max(result - given, given)
    yield kind, max(given, result)
