"""How an image becomes the input of an exported encoder, for the libraries that it goes to."""
import dataclasses
import json

from conic_jax.views import IMAGENET_MEAN, IMAGENET_STD

_BILINEAR = 2  # Pillow's number for it.


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """An image is resized, cut at its centre and normalised, as in the run's own evaluations.

  Attributes:
    size: side of the crop in pixels.
    resize: pixels of the short side before the crop.
    mean, std: normalisation of the channels, on the scale 0 to 1.
  """
  size: int = 224
  resize: int = 256
  mean: tuple[float, ...] = IMAGENET_MEAN
  std: tuple[float, ...] = IMAGENET_STD


def transformers(preprocessing: Preprocessing) -> str:
  """The content of preprocessor_config.json, by which AutoImageProcessor does the same."""
  return json.dumps({
    'image_processor_type': 'BitImageProcessor', 'do_convert_rgb': True,
    'do_resize': True, 'size': {'shortest_edge': preprocessing.resize}, 'resample': _BILINEAR,
    'do_center_crop': True, 'crop_size': {'height': preprocessing.size, 'width': preprocessing.size},
    'do_rescale': True, 'rescale_factor': 1 / 255,
    'do_normalize': True, 'image_mean': list(preprocessing.mean), 'image_std': list(preprocessing.std),
  }, indent=2) + '\n'
