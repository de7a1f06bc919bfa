"""Specification of views: size, crop and augmentation. Methods request views, `data` makes them."""
import dataclasses
from collections.abc import Mapping
from typing import Any

from conic_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COLOURS = ('torchvision', 'tensorflow')
INTERPOLATIONS = ('bilinear', 'bicubic')


@dataclasses.dataclass(frozen=True)
class Views:
  """A group of views of one size, all drawn in the same way: the group `config.views`.

  Attributes:
    count: views per image.
    size: side of the view in pixels.
    interpolation: interpolation of the crops: 'bilinear', antialiased if they shrink by more than 2, or
      'bicubic', TensorFlow's without antialiasing.
    crop: smallest and largest area of the crop as a share of the image.
    aspect: smallest and largest width-to-height ratio of the crop.
    overlap: minimum overlap of the group's two crops as a share of the smaller one, and at least a pixel; at
      0 they need not overlap.
    flip: probability of a horizontal flip.
    jitter: probability of the colour jitter.
    strength: factor on the four jitter ranges.
    colour: definition of contrast and saturation: 'torchvision' (towards the mean luma and the luma) or
      'tensorflow' (about the mean of each channel, and in HSV).
    additive_brightness: whether brightness is added to the channels instead of multiplying them.
    brightness, contrast, saturation, hue: jitter ranges (hue as a share of the colour circle).
    grayscale: probability of converting to grayscale.
    blur: probability of the Gaussian blur.
    blur_sigma: range of its standard deviation in pixels.
    blur_kernel: width of its kernel as a share of the side.
    solarise: probability of inverting values of at least 0.5.
    mean, std: normalisation of the channels, on the scale 0 to 1.

  Raises:
    UserError: if `colour` or `interpolation` is unknown.
  """
  count: int
  size: int
  interpolation: str
  crop: tuple[float, float]
  aspect: tuple[float, float]
  overlap: float
  flip: float
  jitter: float
  strength: float
  colour: str
  additive_brightness: bool
  brightness: float
  contrast: float
  saturation: float
  hue: float
  grayscale: float
  blur: float
  blur_sigma: tuple[float, float]
  blur_kernel: float
  solarise: float
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  def __post_init__(self):
    for field, known in (('colour', COLOURS), ('interpolation', INTERPOLATIONS)):
      value = getattr(self, field)
      if value not in known:
        raise UserError(f"config.views.{field} is '{value}'; available: {', '.join(known)}.")


def evaluated(settings: Mapping[str, Any]) -> Views:
  """The view used in evaluation, without random augmentation.

  Args:
    settings: `config.views`, possibly of an older run that lacks fields. Gives size, aspect and
      normalisation; the defaults are 224, torchvision's aspect range and ImageNet's normalisation.
  """
  own = {name: settings[name] for name in ('size', 'aspect', 'mean', 'std') if name in settings}
  return Views(**{
    'count': 1, 'size': 224, 'interpolation': 'bilinear', 'crop': (1.0, 1.0), 'aspect': (3 / 4, 4 / 3),
    'overlap': 0.0, 'flip': 0.0, 'jitter': 0.0, 'strength': 0.0, 'colour': 'torchvision',
    'additive_brightness': False, 'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0,
    'grayscale': 0.0, 'blur': 0.0, 'blur_sigma': (0.0, 0.0), 'blur_kernel': 0.0, 'solarise': 0.0,
    'mean': IMAGENET_MEAN, 'std': IMAGENET_STD, **own})


def usual_resize(size: int) -> int:
  """Short side in pixels for a crop of `size`, in ImageNet's ratio of 256 for 224."""
  return round(size * 256 / 224)


@dataclasses.dataclass(frozen=True)
class CentralView:
  """How an image that is evaluated becomes an input: resized, cut at its centre and normalised.

  Attributes:
    spec: gives the side of the crop in pixels and the channel normalisation.
    resize: pixels to resize the short side to before the crop; 0 gives the whole central square.
  """
  spec: Views
  resize: int


def supervised(views: Views, size: int, crop: tuple[float, float]) -> Views:
  """One view of `size` for training on labels: only a random bilinear crop, flipped half the time."""
  return dataclasses.replace(views, count=1, size=size, crop=crop, interpolation='bilinear', flip=0.5,
                             jitter=0.0, grayscale=0.0, blur=0.0, solarise=0.0, overlap=0.0)
