"""The kinds of encoders that files of other tools hold beside ResNets."""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from conic_jax.export import convnexts, vits
from conic_jax.export.layouts import Spelling
from conic_jax.models import ConvNeXt, EncoderModule, VisionTransformer


@dataclasses.dataclass(frozen=True)
class Family:
  """A kind of encoders with timm's names.

  Attributes:
    network: the module.
    kind: in words, several of them.
    name: the common name of a network, '' if it has none.
    described: a network in words.
    timm_call: the call of timm that makes a network, for images of a size.
    spellings: names in the files of different libraries.
    tidied: arrays of a file by timm's names, with timm's shapes.
    describe: the settings of `models.build_encoder` for these arrays.
    side: pixels per side of images that the arrays suit.
    to_timm, from_timm: a network's variables as arrays by timm's names, and back.
    to_transformers: config.json and the arrays of Transformers' model.
  """
  network: type[EncoderModule]
  kind: str
  name: Callable[..., str]
  described: Callable[..., str]
  timm_call: Callable[..., str]
  spellings: tuple[Spelling, ...]
  tidied: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
  describe: Callable[[Mapping[str, np.ndarray]], dict[str, Any]]
  side: Callable[[Mapping[str, np.ndarray]], int]
  to_timm: Callable[..., dict[str, np.ndarray]]
  from_timm: Callable[..., dict[str, Any]]
  to_transformers: Callable[..., tuple[dict[str, Any], dict[str, np.ndarray]]]


FAMILIES = (
  Family(VisionTransformer, 'vision transformers', vits.name, vits.described, vits.timm_call, vits.SPELLINGS,
         vits.joined, vits.describe, vits.side, vits.to_timm, vits.from_timm, vits.to_transformers),
  Family(ConvNeXt, 'ConvNeXts', convnexts.name, convnexts.described, convnexts.timm_call,
         convnexts.SPELLINGS, convnexts.flattened, convnexts.describe, lambda arrays: 224, convnexts.to_timm,
         convnexts.from_timm, convnexts.to_transformers),
)


def of_network(network: EncoderModule) -> Family | None:
  """The family of a network; None for ResNets and for modules of the user's own."""
  return next((family for family in FAMILIES if isinstance(network, family.network)), None)


def image_size(network: EncoderModule, variables: Mapping[str, Any]) -> int:
  """Pixels per side of the images that an encoder of a file suits: those of its learned positions, or 224."""
  if isinstance(network, VisionTransformer) and network.positions == 'learned':
    return len(variables['params']['stem']['positions']) * network.patch
  return 224
