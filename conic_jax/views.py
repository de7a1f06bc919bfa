"""What a view is: its size, its crop and its augmentation. Methods ask for views, `data` makes them."""
import dataclasses

from conic_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COLOURS = ('torchvision', 'tensorflow')
INTERPOLATIONS = ('bilinear', 'bicubic')


@dataclasses.dataclass(frozen=True)
class Views:
  """A group of views of one size, all drawn in the same way.

  The colour strengths are SimCLR's at `strength` 1: ConIC says "similar to SimCLR" and its
  Appendix E is not in the published text, so this is our reading.

  Attributes:
    count: views an image.
    size: side of the view in pixels.
    interpolation: of the crops: 'bilinear', antialiased where they shrink by more than 2, or 'bicubic',
      as TensorFlow's without antialiasing.
    crop: smallest and largest area of the crop as a share of the image.
    aspect: narrowest and widest ratio of width to height of the crop.
    overlap: the part that the group's two crops have in common, as a share of the smaller one, is at least
      this, and at least a pixel; at 0 they may lie apart.
    flip: probability of a horizontal flip.
    jitter: probability of the colour jitter.
    strength: factor on the four jitter ranges.
    colour: whose contrast and saturation: 'torchvision', towards the mean luma and the luma, or 'tensorflow',
      about the mean of each channel and in HSV.
    additive_brightness: brightness is added to the channels; else they are multiplied by it.
    brightness, contrast, saturation, hue: jitter ranges (hue as a share of the colour circle).
    grayscale: probability of dropping the colour.
    blur: probability of the Gaussian blur.
    blur_sigma: range of its standard deviation in pixels.
    blur_kernel: width of its kernel as a share of the side.
    solarise: probability of inverting what is at least 0.5.
    mean, std: normalisation of the channels, on the scale 0 to 1.

  Raises:
    UserError: for a colour or an interpolation that there is not.
  """
  count: int = 2
  size: int = 224
  interpolation: str = 'bilinear'
  crop: tuple[float, float] = (0.15, 1.0)
  aspect: tuple[float, float] = (3 / 4, 4 / 3)
  overlap: float = 0.0
  flip: float = 0.5
  jitter: float = 0.8
  strength: float = 1.0
  colour: str = 'torchvision'
  additive_brightness: bool = False
  brightness: float = 0.8
  contrast: float = 0.8
  saturation: float = 0.8
  hue: float = 0.2
  grayscale: float = 0.2
  blur: float = 0.5
  blur_sigma: tuple[float, float] = (0.1, 2.0)
  blur_kernel: float = 0.1
  solarise: float = 0.0
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD

  def __post_init__(self):
    for field, known in (('colour', COLOURS), ('interpolation', INTERPOLATIONS)):
      value = getattr(self, field)
      if value not in known:
        raise UserError(f"config.views.{field} is '{value}'; there is: {', '.join(known)}.")


def supervised(views: Views, size: int, crop: tuple[float, float]) -> Views:
  """One view of a size for training on labels: a random bilinear crop, mirrored by half, and nothing else."""
  return dataclasses.replace(views, count=1, size=size, crop=crop, interpolation='bilinear', flip=0.5,
                             jitter=0.0, grayscale=0.0, blur=0.0, solarise=0.0, overlap=0.0)
