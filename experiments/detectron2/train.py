"""Fine-tunes a detector of Detectron2 on an encoder that was exported for it.

  python experiments/detectron2/train.py --config-file=experiments/detectron2/voc_c4_24k.yaml --num-gpus=8

It takes the flags of Detectron2's own script, and settings by name at the end; README.md here has the
commands. It needs nothing of conic_jax, so that it runs where that is not installed.
"""
# pyright: reportMissingImports=false
import argparse
import importlib.util
import json
import os
import sys
import types
from typing import Any

import numpy as np

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
# Packages that the kind needs besides.
PACKAGES = {'coco': ('pycocotools',), 'lvis': ('pycocotools', 'lvis'),
            'cityscapes_instance': ('cityscapesscripts', 'shapely')}
# The name by which Detectron2 has imported Cityscapes' scripts since December 2024.
CITYSCAPES = 'deeplearning.projects.cityscapesApi.cityscapesscripts'
CITYSCAPES_PARTS = ('', '.helpers', '.helpers.labels', '.evaluation',
                    '.evaluation.evalInstanceLevelSemanticLabeling')


def mend_libraries() -> None:
  """Gives the evaluations what they call by names that are gone: of Cityscapes' scripts, and of NumPy.

  Without them Cityscapes does not start, and it and LVIS end in an error after the training.
  """
  if importlib.util.find_spec('cityscapesscripts') and CITYSCAPES not in sys.modules:
    *parents, _ = CITYSCAPES.split('.')
    for depth in range(1, len(parents) + 1):
      name = '.'.join(parents[:depth])
      sys.modules.setdefault(name, types.ModuleType(name)).__path__ = []
    for part in CITYSCAPES_PARTS:
      sys.modules[CITYSCAPES + part] = importlib.import_module(f'cityscapesscripts{part}')
    sys.modules[CITYSCAPES + CITYSCAPES_PARTS[-1]].writeDict2JSON = write_json
  if not hasattr(np, 'in1d'):
    setattr(np, 'in1d', lambda first, second, **options: np.isin(np.ravel(first), second, **options))  # noqa: B010
  for kind in (float, int, object):  # NumPy's own `bool` is of another kind, and is there.
    if kind.__name__ not in np.__dict__:
      setattr(np, kind.__name__, kind)


def write_json(content: dict[str, Any], path: str) -> None:
  """Writes what Cityscapes' scripts write, in which newer NumPy leaves numbers of its own."""
  def plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else vars(value)
  with open(path, 'w') as file:
    json.dump(content, file, default=plain, sort_keys=True, indent=4)


def check(config: CfgNode) -> None:
  """Ends with a sentence, before the training, if the encoder or a package of the evaluation is missing."""
  weights = config.MODEL.WEIGHTS
  if weights and '://' not in weights and not os.path.exists(weights):
    sys.exit(f"train.py: there is no encoder '{weights}' here: write one with python -m conic_jax.export RUN "
             "--to=detectron2 --out=encoder.pkl, or give MODEL.WEIGHTS FILE, or MODEL.WEIGHTS '' to start "
             'from scratch.')
  kinds = {name: MetadataCatalog.get(name).evaluator_type for name in config.DATASETS.TEST}
  for name, kind in kinds.items():
    if kind not in EVALUATORS:
      sys.exit(f"train.py: {name} is evaluated as '{kind}', which is not one of {', '.join(EVALUATORS)}.")
    missing = [name for name in PACKAGES.get(kind, ()) if importlib.util.find_spec(name) is None]
    if missing:
      sys.exit(f'train.py: {name} is evaluated with packages that are not installed: pip install '
               f'{" ".join(missing)}.')


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
  check(config)
  mend_libraries()
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
