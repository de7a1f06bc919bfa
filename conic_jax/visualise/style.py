"""Shared by all pictures: colours, axis style, names, and saving."""
import contextlib
import io
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

# Okabe and Ito's blue, vermilion and green, distinguishable with every common kind of colour blindness.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
GREY = '#444444'  # Of frames, ticks, and figures that stand alone.
# Tol's muted scheme and a grey; after ten classes the marker changes.
CLASS_COLOURS = ('#332288', '#CC6677', '#117733', '#88CCEE', '#882255', '#DDCC77', '#44AA99',
                 '#AA4499', '#999933', '#777777')
LETTERED: dict[str, Any] = {'color': 'white', 'ha': 'center', 'va': 'center', 'clip_on': True,
                            'path_effects': [withStroke(linewidth=1.5, foreground='black')]}
_STYLE: dict[Any, Any] = {'font.size': 9, 'axes.titlesize': 10, 'axes.titlelocation': 'left',
                          'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
                          'axes.axisbelow': True, 'grid.color': '#E6E6E6', 'grid.linewidth': 0.6,
                          'axes.edgecolor': '#666666', 'xtick.color': GREY, 'ytick.color': GREY,
                          'legend.frameon': False,
                          # Class names may contain a $, a \ or a _.
                          'text.parse_math': False, 'text.usetex': False}
# Drawn with where they are installed: characters that DejaVu Sans, which Matplotlib brings, does not have.
_MORE_FONTS = ('Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans SC', 'Source Han Sans SC',
               'WenQuanYi Micro Hei', 'Microsoft YaHei', 'PingFang SC', 'Hiragino Sans', 'Arial Unicode MS',
               'Noto Sans Devanagari', 'Noto Sans Bengali', 'Noto Sans Tamil', 'Noto Sans Thai', 'Noto Emoji')
# Larger pictures get fewer dots an inch: they would fill the memory, and Pillow refuses them.
_MOST_PIXELS = 40_000_000
# What Matplotlib warns of where a name is in a script that its fonts lack, or is too long for the layout.
_EXPECTED = (r'Glyph \d+', 'Matplotlib currently does not support', 'constrained_layout not applied')


@contextlib.contextmanager
def drawing() -> Iterator[None]:
  """The style of every picture, whatever the user's own, for as long as one is drawn."""
  installed = {font.name for font in font_manager.fontManager.ttflist}
  fonts = ['DejaVu Sans', *(name for name in _MORE_FONTS if name in installed)]
  with matplotlib.rc_context({**_STYLE, 'font.family': fonts}):
    yield


def draw_image(axis: Axes, image: np.ndarray, colour: str) -> None:
  """Draws an image without ticks in a coloured frame."""
  axis.imshow(image, interpolation='nearest')
  axis.grid(False)
  axis.set(xticks=[], yticks=[])
  axis.spines[:].set(visible=True, color=colour, linewidth=2)


def shown_name(name: str, most: int = 24) -> str:
  """A name as it can be drawn: on one line, without halves of characters, at most `most` characters long."""
  kinds = {'Cc': ' ', 'Zl': ' ', 'Zp': ' ', 'Cs': '\N{REPLACEMENT CHARACTER}'}
  drawn = ''.join(kinds.get(unicodedata.category(character), character) for character in name).strip()
  if not drawn:
    return '(no name)'
  return drawn if len(drawn) <= most else f'{drawn[:most - 1]}…'


def save(figure: Figure, out: Path, dpi: int = 130) -> None:
  """Writes the picture with 256 dithered colours, a third of the file size.

  An older picture of this name is replaced once the new one is whole.

  Raises:
    OSError: if it cannot be written.
  """
  drawn, written = io.BytesIO(), io.BytesIO()
  width, height = figure.get_size_inches()
  with warnings.catch_warnings():
    for message in _EXPECTED:
      warnings.filterwarnings('ignore', message)
    figure.savefig(drawn, format='png', dpi=min(dpi, (_MOST_PIXELS / (width * height)) ** 0.5),
                   pil_kwargs={'compress_level': 0})
  picture = Image.open(drawn).convert('RGB')
  palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
  picture = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
  picture.save(written, format='png')
  out.parent.mkdir(parents=True, exist_ok=True)
  temporary = out.with_name(f'{out.name}.tmp')
  try:
    temporary.write_bytes(written.getvalue())
    temporary.replace(out)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
