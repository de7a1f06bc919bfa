"""Class labels as data sets write them, numbers or names, as numbers from 0."""
import re
from collections.abc import Sequence

import numpy as np

from conic_jax.errors import UserError

NO_LABEL = 'none'
_MOST_NUMBERS = 1_000_000
_REMEDY = "make all of them numbers from 0 or all of them names, or set config.data.label to 'none'."


class LabelCodes:
  """Gives every label a code, in the order in which they are met.

  Attributes:
    values: the labels by their codes, all int or all str.
  """

  def __init__(self):
    self.values: list[int | str] = []
    self._codes: dict[int | str, int] = {}
    self._first_in = ''

  def encode(self, labels: Sequence[int | str | None], where: str) -> np.ndarray:
    """Codes of labels, int32, -1 for none: None, '' and numbers below 0.

    Args:
      labels: the labels.
      where: the file that they are of, for messages.

    Raises:
      UserError: if some are numbers and others names.
    """
    return np.array([self._code(label, where) for label in labels], np.int32)

  def _code(self, label, where):
    if label is None or label == '' or (isinstance(label, int) and label < 0):
      return -1
    if (code := self._codes.get(label)) is not None:
      return code
    self._first_in = self._first_in or where
    if self.values and type(self.values[0]) is not type(label):
      raise UserError(f'The labels are of unlike types, {self.values[0]!r} in {self._first_in} and {label!r} '
                      f'in {where}: {_REMEDY}')
    self._codes[label] = len(self.values)
    self.values.append(label)
    return self._codes[label]


def from_text(text: str) -> int | str:
  """A label of a text file: digits are a number."""
  text = text.strip()
  return int(text) if re.fullmatch(r'-?\d{1,18}', text) else text


def classes(values: Sequence[int | str], names: Sequence[str], where: str
            ) -> tuple[tuple[str, ...], np.ndarray]:
  """The names of the classes, and the label of each code.

  Args:
    values: `LabelCodes.values`.
    names: the names of all classes if they are known, else empty.
    where: what the labels are of, for messages.

  Returns:
    Names by label: those given, or the numbers, or the sorted names; int32 [codes].

  Raises:
    UserError: if a label is of no class.
  """
  if not values:
    return tuple(names), np.empty(0, np.int32)
  if isinstance(values[0], str):
    names = names or sorted(map(str, values))
    numbers = {name: number for number, name in enumerate(names)}
    if strange := next((value for value in values if value not in numbers), None):
      raise UserError(f"{where} has the label '{strange}', which is none of its {len(names)} class names: "
                      "mend one of them, or set config.data.label to 'none'.")
    return tuple(names), np.array([numbers[str(value)] for value in values], np.int32)
  largest = max(map(int, values))
  if largest >= (len(names) or _MOST_NUMBERS):
    limit = f'there are {len(names)} class names' if names else 'classes are counted from 0'
    raise UserError(f'{where} has the label {largest}, and {limit}: set config.data.label to the one that is '
                    "meant, or to 'none'.")
  return tuple(names) or tuple(map(str, range(largest + 1))), np.array(values, np.int32)
