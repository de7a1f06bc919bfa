"""A compiled program, read from its text: computations, instructions, shapes, and how often loops run."""
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ITEMSIZE = {'pred': 1, 'token': 0, 'opaque': 0, 'c64': 8, 'c128': 16}
# TPU: vector, flag and scalar memory on the chip, whose traffic does not reach the HBM.
_ON_CHIP = re.compile(r'S\([126]\)\}?$')
_TILE = re.compile(r'\{([\d,]*):.*?T\(([\d,]+)\)')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')


class Array(NamedTuple):
  """An array of a shape: its element type, dimensions and layout, as in f32[8,128]{1,0:T(8,128)}."""
  kind: str
  dims: tuple[int, ...]
  layout: str


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


def arrays(shape: str) -> Iterator[Array]:
  """The arrays of a shape, which is a tuple or an array itself."""
  for kind, dims, layout in _ARRAY.findall(shape):
    yield Array(kind, tuple(int(dim) for dim in dims.split(',') if dim), layout)


def dims(shape: str) -> tuple[int, ...]:
  """Dimensions of an array, or of the first one of a tuple."""
  return next(arrays(shape)).dims


def size(shape: str, in_memory: bool = True) -> int:
  """Bytes of a shape with the padding of its tiles.

  Args:
    in_memory: whether to leave out arrays on chip, to count the device's memory alone.
  """
  return sum(array_size(array) for array in arrays(shape)
             if not (in_memory and _ON_CHIP.search(array.layout)))


def array_size(array: Array) -> int:
  """Bytes of an array with the padding of its tiles."""
  return math.ceil(_itemsize(array.kind) * math.prod(_padded(array)))


def _itemsize(kind: str) -> float:
  bits = re.search(r'\d+', kind)
  return _ITEMSIZE[kind] if kind in _ITEMSIZE else int(bits.group()) / 8 if bits else 0


def _padded(array: Array) -> tuple[int, ...]:
  """Dimensions from the slowest to the fastest in memory, the fastest ones filled up to whole tiles (TPU)."""
  tiled = _TILE.match(array.layout)
  if tiled is None or not array.dims:
    return array.dims
  order, tile = ([int(number) for number in group.split(',')] for group in tiled.groups())
  stored = [array.dims[axis] for axis in reversed(order)]
  stored = [1] * (len(tile) - len(stored)) + stored
  kept = len(stored) - len(tile)
  return (*stored[:kept], *(-(-dim // side) * side for dim, side in zip(stored[kept:], tile)))


def computation_of(instruction: Instruction, attribute: str) -> str:
  """The computation that an attribute must name."""
  name = instruction.called(attribute)
  assert name is not None, f'{instruction.opcode} without {attribute}'
  return name


def branches(instruction: Instruction) -> list[str]:
  """Names of a conditional's computations."""
  listed = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
  if listed:
    return re.findall(r'%?([\w.\-]+)', listed.group(1))
  return [computation_of(instruction, 'true_computation'), computation_of(instruction, 'false_computation')]


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

  condition, body = (computations[computation_of(loop, part)] for part in ('condition', 'body'))
  test, after = root_of(condition), root_of(body)
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


def root_of(computation: Computation) -> Instruction:
  """The instruction that a computation returns."""
  return next(instruction for instruction in computation.values() if instruction.is_root)


def _tuple_index(instruction: Instruction) -> int:
  found = re.search(r'index=(\d+)', instruction.attributes)
  return int(found.group(1)) if found else -1
