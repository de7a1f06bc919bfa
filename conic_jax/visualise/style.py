"""Shared by all pictures: colours, axis style, and saving."""
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

# Okabe and Ito's blue, vermilion and green, distinguishable with every common kind of colour blindness.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
# Tol's muted scheme and a grey; after ten classes the marker changes.
CLASS_COLOURS = ('#332288', '#CC6677', '#117733', '#88CCEE', '#882255', '#DDCC77', '#44AA99',
                 '#AA4499', '#999933', '#777777')
LETTERED: dict[str, Any] = {'color': 'white', 'ha': 'center', 'va': 'center', 'clip_on': True,
                            'path_effects': [withStroke(linewidth=1.5, foreground='black')]}
STYLE: dict[Any, Any] = {'font.size': 9, 'axes.titlesize': 10, 'axes.titlelocation': 'left',
                         'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
                         'axes.axisbelow': True, 'grid.color': '#E6E6E6', 'grid.linewidth': 0.6,
                         'axes.edgecolor': '#666666', 'xtick.color': '#444444', 'ytick.color': '#444444',
                         'legend.frameon': False,
                         'text.parse_math': False}  # Class names may contain a $.


def draw_image(axis: Axes, image: np.ndarray, colour: str) -> None:
  """Draws an image without ticks in a coloured frame."""
  axis.imshow(image, interpolation='nearest')
  axis.grid(False)
  axis.set(xticks=[], yticks=[])
  axis.spines[:].set(visible=True, color=colour, linewidth=2)


def save(figure: Figure, out: Path, dpi: int = 130) -> None:
  """Writes the picture with 256 dithered colours, a third of the file size."""
  drawn = io.BytesIO()
  figure.savefig(drawn, format='png', dpi=dpi)
  picture = Image.open(drawn).convert('RGB')
  palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
  out.parent.mkdir(parents=True, exist_ok=True)
  picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(out, optimize=True)
