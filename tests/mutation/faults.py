"""The faults that are put into the code: one change of one operator, number or branch."""
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cosmic_ray.plugins
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code

# Of each operator the replacements that a slip of the pen makes; all twelve would be the same fault.
_SWAPS = {
  'Binary': ('Add_Sub', 'Sub_Add', 'Mul_Div', 'Div_Mul', 'FloorDiv_Div', 'Mod_Mul', 'Pow_Mul', 'BitAnd_BitOr',
             'BitOr_BitAnd'),
  'Comparison': ('Eq_NotEq', 'NotEq_Eq', 'Lt_LtE', 'Lt_GtE', 'LtE_Lt', 'LtE_Gt', 'Gt_GtE', 'Gt_LtE', 'GtE_Gt',
                 'GtE_Lt', 'Is_IsNot', 'IsNot_Is')}
OPERATORS = (*(f'core/Replace{kind}Operator_{swap}' for kind, swaps in _SWAPS.items() for swap in swaps),
             'core/ReplaceUnaryOperator_USub_UAdd', 'core/ReplaceUnaryOperator_Delete_Not',
             'core/ReplaceUnaryOperator_Delete_Invert', 'core/ReplaceAndWithOr', 'core/ReplaceOrWithAnd',
             'core/ReplaceTrueWithFalse', 'core/ReplaceFalseWithTrue', 'core/AddNot', 'core/NumberReplacer',
             'core/ZeroIterationForLoop', 'core/ReplaceBreakWithContinue', 'core/ReplaceContinueWithBreak')


class Fault(NamedTuple):
  """A mutant.

  Attributes:
    operator, occurrence: which change, and where it is made.
    line: the number of the line.
    before, after: the line, without and with it.
    text: the module with it.
  """
  operator: str
  occurrence: int
  line: int
  before: str
  after: str
  text: str


def faults(root: Path, module: str, share: float) -> Iterator[Fault]:
  """A share of the faults of a module, drawn by chance; none in annotations, and of no star that unpacks."""
  source = (root / module).read_text()
  lines, tree = source.splitlines(), get_ast(source)
  for name in OPERATORS:
    operator = cosmic_ray.plugins.get_operator(name)()
    for occurrence, computes in enumerate(_places(tree, operator)):
      if not computes or zlib.crc32(f'{module} {name} {occurrence}'.encode()) >= share * 2 ** 32:
        continue
      text = mutate_code(source, operator, occurrence)
      assert text is not None
      after = text.splitlines()
      index = next(i for i, (one, two) in enumerate(zip(lines, after)) if one != two)
      yield Fault(name, occurrence, index + 1, lines[index].strip(), after[index].strip(), text)


def _places(node, operator) -> Iterator[bool]:
  """For each place where an operator applies, in its order, whether something is computed there."""
  for _ in operator.mutation_positions(node):
    yield not (_annotates(node) or _unpacks(node))
  for child in getattr(node, 'children', ()):
    yield from _places(child, operator)


def _annotates(node) -> bool:
  while (parent := node.parent) is not None:
    if (parent.type == 'tfpdef' or (parent.type == 'annassign' and node is parent.children[1])
        or (parent.type == 'funcdef' and node is parent.annotation)):
      return True
    node = parent
  return False


def _unpacks(node) -> bool:
  """Whether a node is the star of `def f(a, *, b)` or of `{**a}`."""
  return node.type == 'operator' and node.parent.type in ('parameters', 'dictorsetmaker')
