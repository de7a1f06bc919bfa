"""Encoders and heads."""
from conic_jax.models.deeplab import DeepLabV3
from conic_jax.models.heads import MLP, mlp_of
from conic_jax.models.normalisation import MODES, BatchNorm
from conic_jax.models.resnet import ENCODER_FIELDS, EncoderModule, ResNet, build_encoder, stage_names

__all__ = ['ENCODER_FIELDS', 'MLP', 'MODES', 'BatchNorm', 'DeepLabV3', 'EncoderModule', 'ResNet',
           'build_encoder', 'mlp_of', 'stage_names']
