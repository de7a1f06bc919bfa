"""Encoders and heads."""
from conic_jax.models.build import ENCODER_FIELDS, NAMES, EncoderModule, build_encoder, distances, stage_names
from conic_jax.models.convnext import ConvNeXt
from conic_jax.models.deeplab import DeepLabV3
from conic_jax.models.heads import MLP, mlp_of
from conic_jax.models.normalisation import MODES, BatchNorm
from conic_jax.models.resnet import ResNet
from conic_jax.models.vit import VisionTransformer, resized_positions

__all__ = ['ENCODER_FIELDS', 'MLP', 'MODES', 'NAMES', 'BatchNorm', 'ConvNeXt', 'DeepLabV3', 'EncoderModule',
           'ResNet', 'VisionTransformer', 'build_encoder', 'distances', 'mlp_of', 'resized_positions',
           'stage_names']
