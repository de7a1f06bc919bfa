"""Fine-tunes a detector of Detectron2 on an encoder that was exported for it.

  python experiments/detectron2/train.py --config-file=experiments/detectron2/voc_c4_24k.yaml --num-gpus=8

It takes the flags of Detectron2's own script, and settings by name at the end; README.md here has the
commands. It needs nothing of conic_jax, so that it runs where that is not installed.
"""
# pyright: reportMissingImports=false
import argparse
import os
import sys
from typing import Any

try:
  from detectron2 import evaluation
  from detectron2.checkpoint import DetectionCheckpointer
  from detectron2.config import CfgNode, get_cfg
  from detectron2.data import MetadataCatalog
  from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
  from detectron2.layers import ShapeSpec, get_norm
  from detectron2.modeling import ROI_HEADS_REGISTRY
  from detectron2.modeling.roi_heads import Res5ROIHeads
except ModuleNotFoundError as error:
  sys.exit(f'train.py: {error.name} is not installed: install PyTorch, torchvision and Detectron2 as '
           'https://detectron2.readthedocs.io/tutorials/install.html says.')

# By what Detectron2 calls the kind of a data set.
EVALUATORS = {
  'coco': lambda name, folder: evaluation.COCOEvaluator(name, output_dir=folder),
  'lvis': lambda name, folder: evaluation.LVISEvaluator(name, output_dir=folder),
  'pascal_voc': lambda name, folder: evaluation.PascalVOCDetectionEvaluator(name),
  'cityscapes_instance': lambda name, folder: evaluation.CityscapesInstanceEvaluator(name),
}


@ROI_HEADS_REGISTRY.register()
class Res5NormROIHeads(Res5ROIHeads):
  """Stage res5 over regions, with a batch norm after it.

  Source: ConIC, appendix C.1, after MoCo (He et al. 2020).
  """

  @classmethod
  def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
    arguments = super().from_config(cfg, input_shape)
    res5 = arguments['res5']
    res5.add_module('norm', get_norm(cfg.MODEL.RESNETS.NORM, res5[-1].out_channels))
    return arguments


class Trainer(DefaultTrainer):
  """Evaluates each data set by its own protocol."""

  @classmethod
  def build_evaluator(cls, cfg: CfgNode, dataset_name: str,
                      output_folder: str | None = None) -> evaluation.DatasetEvaluator:
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    return EVALUATORS[kind](dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, 'inference'))


def read_config(arguments: argparse.Namespace) -> CfgNode:
  """The settings of a file, changed by those of the command line."""
  config = get_cfg()
  config.merge_from_file(arguments.config_file)
  config.merge_from_list(arguments.opts)
  config.freeze()
  return config


def train(arguments: argparse.Namespace) -> dict[str, Any]:
  """Trains and evaluates, or evaluates only, as one process of all.

  Returns:
    The figures by task and name.
  """
  config = read_config(arguments)
  default_setup(config, arguments)
  if arguments.eval_only:
    model = Trainer.build_model(config)
    checkpointer = DetectionCheckpointer(model, config.OUTPUT_DIR)
    checkpointer.resume_or_load(config.MODEL.WEIGHTS, resume=arguments.resume)
    return Trainer.test(config, model)
  trainer = Trainer(config)
  trainer.resume_or_load(resume=arguments.resume)
  return trainer.train()


if __name__ == '__main__':
  arguments = default_argument_parser().parse_args()
  launch(train, arguments.num_gpus, arguments.num_machines, arguments.machine_rank, arguments.dist_url,
         args=(arguments,))
