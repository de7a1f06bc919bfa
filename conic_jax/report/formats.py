"""Human-readable formatting of figures."""
import math
import re
from typing import Any

# Names, or parts of names, of shares of 1; values nested below them (by class, by rate) are shares too.
_SHARE = re.compile(r'(^|_)(knn|top\d+|accuracy|precision|ap|map|iou|miou|held_out|by_learning_rate)(_|$)')
_WORDS = {'knn': 'kNN', 'top1': 'top-1', 'top5': 'top-5', 'ap': 'AP', 'map': 'mAP', 'iou': 'IoU',
          'miou': 'mIoU', 'rankme': 'RankMe', 'lidar': 'LiDAR'}


def words(name: str) -> str:
  """A figure's name in words: 'linear_top1' is 'Linear top-1', 'knn_top1_k20' is 'kNN top-1, k = 20'."""
  first, *rest = name.split('_')
  text = ' '.join(_WORDS.get(word, word) for word in ('', *rest))
  return _WORDS.get(first, first[:1].upper() + first[1:]) + re.sub(r' k(\d+)$', r', k = \1', text)


def is_share(path: tuple[str, ...], value: Any) -> bool:
  """Whether a figure is a share of 1, judging by the names in its path: ('iou', 'road') is one."""
  return isinstance(value, float) and 0 <= value <= 1 and any(_SHARE.search(name) for name in path)


def written(path: tuple[str, ...], value: Any) -> str:
  """A figure as text: shares in percent, numbers with four digits, lists separated by commas."""
  if is_share(path, value):
    return f'{100 * value:.1f} %'
  if isinstance(value, bool) or value is None:
    return {True: 'yes', False: 'no', None: '–'}[value]
  if isinstance(value, int):
    return minus(f'{value:,}')
  if isinstance(value, float):
    return number(value)
  if isinstance(value, list):
    return ', '.join(written(path, part) for part in value) or '–'
  return str(value) or '–'


def number(value: float) -> str:
  """Four significant digits with thousands separators; scientific notation below 10⁻⁴ and from 10⁷."""
  if not math.isfinite(value):
    return minus(str(value))
  if value and not 1e-4 <= abs(value) < 1e7:
    return minus(f'{value:.3g}')
  decimals = max(3 - math.floor(math.log10(abs(value))), 0) if value else 0
  text = minus(f'{value:,.{decimals}f}')
  return text.rstrip('0').rstrip('.') if '.' in text else text


def minus(text: str) -> str:
  """A number with a typographic minus sign."""
  return text.replace('-', '−')
