"""ConIC's toy in two dimensions: with and without the consistency loss (Figure 2, Appendix D).

  python -m experiments.toy_2d --size=64 --seeds=2 --out=runs/toy_2d

Trains a ResNet-50 on eight photographs that come with scikit-image and scikit-learn, with features of two
dimensions, with α 0.1 and 0 from each seed, and writes toy_2d.png and results.md beside this file: the
kernel density, with a deviation of 0.04, of the features of 20 random views of each photograph. The same
command again goes on with what is there.
"""
import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.hardware import cpu_name
from conic_jax import methods
from conic_jax.command_line import guarded, load
from conic_jax.data import photos, pipeline, sources
from conic_jax.data.augment import augment, view_keys
from conic_jax.hardware import mesh as meshes
from conic_jax.methods.instance import InstanceMethod
from conic_jax.methods.network import merge_views
from conic_jax.pretraining import training
from conic_jax.run.checkpoints import restore_model

HERE = Path(__file__).parent
PHOTOGRAPHS = ('astronaut', 'chelsea', 'china', 'coffee', 'flower', 'motorcycle_left', 'retina', 'rocket')
ALPHAS = (0.1, 0.0)
VIEWS, DEVIATION, GRID = 20, 0.04, 240
LAST = 50  # Steps that the losses of the table are the mean of.
VIEWS_EPOCH = 2**32 - 1  # Names views that no training has seen.
COLOURS = ('#332288', '#CC6677', '#117733', '#88CCEE', '#882255', '#DDCC77', '#44AA99', '#D55E00')


def settings(alpha: float, seed: int, arguments: argparse.Namespace) -> Any:
  """Appendix D: ResNet-50, 200 epochs, batch 8, cosine from 0.0001, weight decay 1e-6, crops of 0.7 to 1."""
  config: Any = load('configs/conic.py:folder')
  config.run = str(arguments.out / f'alpha_{alpha:g}_seed_{seed}_size_{arguments.size}')
  config.seed = seed
  config.data.dir = str(arguments.out / 'photographs')
  config.alpha = alpha
  config.batch_size, config.epochs, config.head.features = 8, 200, 2
  config.optimizer.learning_rate = arguments.learning_rate
  config.optimizer.weight_decay = config.classifier.weight_decay = 1e-6
  config.views.size, config.views.crop = arguments.size, (0.7, 1.0)
  config.views.flip = config.views.jitter = config.views.grayscale = config.views.blur = 0.0
  config.mesh.data = 1
  config.log_every, config.knn_every, config.checkpoint.every_epochs = 1, 0, 200.0
  config.eval.batch_size = 8
  return config


def write_photographs(folder: Path) -> None:
  """The eight photographs as PNG files."""
  folder.mkdir(parents=True, exist_ok=True)
  whole = photos.photographs()
  for name in PHOTOGRAPHS:
    whole[name].save(folder / f'{name}.png', icc_profile=None)


def features_of(config: Any) -> np.ndarray:
  """Unit features of random views of each photograph, float32 [8, 20, 2], of the run's last checkpoint."""
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  method = methods.make(config, len(PHOTOGRAPHS), mesh, meshes.compute_dtype(config.dtype))
  assert isinstance(method, InstanceMethod)
  source = sources.open_source(config.data, config.data.train)
  group = dataclasses.replace(method.views[0], count=VIEWS)
  batch = next(pipeline.whole_pass_batches(source, (group,), batch_size=len(PHOTOGRAPHS), seed=config.seed,
                                           epoch=VIEWS_EPOCH, start_step=0, rows=np.arange(len(PHOTOGRAPHS))))
  model = restore_model(Path(config.run))

  @jax.jit
  def project(images, flip, ids):
    views = merge_views(augment(images, flip, view_keys(config.seed, VIEWS_EPOCH, ids, VIEWS), group))
    features, _ = method.network.project(model['params'], model['batch_stats'], views,
                                         jnp.ones(len(views), bool), 'frozen')
    return features / jnp.linalg.norm(features, axis=1, keepdims=True)
  features = np.asarray(project(batch['views'][0], batch['flip'], batch['id']))
  return features.reshape(len(PHOTOGRAPHS), VIEWS, 2)[np.argsort(batch['id'])]


def density(points: np.ndarray, grid: np.ndarray) -> np.ndarray:
  """The mean of Gaussian kernels of height one around points [n, 2], at the places [..., 2]."""
  squares = ((grid[..., None, :] - points) ** 2).sum(-1)
  return np.exp(-squares / (2 * DEVIATION ** 2)).mean(-1)


def draw(features: dict[float, np.ndarray], path: Path) -> None:
  """A panel an α: the density of every photograph's views in its colour."""
  matplotlib.use('Agg')
  side = np.linspace(-1.25, 1.25, GRID)
  grid = np.stack(np.meshgrid(side, side), axis=-1)
  figure, axes = plt.subplots(1, len(features), figsize=(4.2 * len(features), 4.7), layout='constrained')
  for axis, (alpha, found) in zip(np.atleast_1d(axes), features.items(), strict=True):
    picture = np.ones((GRID, GRID, 3))
    for points, colour in zip(found, COLOURS, strict=True):
      shares = np.minimum(1.5 * density(points, grid), 1)[..., None]
      picture = (1 - shares) * picture + shares * np.array(matplotlib.colors.to_rgb(colour))
    axis.imshow(picture, origin='lower', extent=(-1.25, 1.25, -1.25, 1.25), interpolation='bilinear')
    what = 'classification and consistency' if alpha else 'classification alone'
    axis.set_title(f'{what}, α = {alpha:g}', fontsize=10)
    axis.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
  handles = [plt.Line2D([], [], linestyle='', marker='o', color=colour, label=name.removesuffix('_left'))
             for name, colour in zip(PHOTOGRAPHS, COLOURS, strict=True)]
  figure.legend(handles=handles, loc='outside lower center', ncols=4, fontsize=8, frameon=False)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def describe(alpha: float, seed: int, config: Any, found: np.ndarray) -> str:
  """A row of the table: losses of the last steps, how compact and how far apart the photographs are."""
  lines = (Path(config.run) / 'metrics.jsonl').read_text().splitlines()[-LAST:]
  losses = [np.mean([json.loads(line)[f'loss_{name}'] for line in lines])
            for name in ('instance', 'consistency')]
  cosines = np.einsum('ivd,jwd->ijvw', found, found)
  own = np.eye(len(found), dtype=bool)
  return (f'| {alpha:g} | {seed} | {losses[0]:.3f} | {losses[1]:.4f} | '
          f'{cosines[own].mean():.3f} | {cosines[~own].mean(axis=(1, 2)).max():.3f} |')


def run() -> None:
  """Trains all, or goes on with what is there, and writes the picture of the first seed and the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=Path, default=Path('runs/toy_2d'))
  parser.add_argument('--size', type=int, default=224, help='side of the views in pixels; the paper has 224')
  parser.add_argument('--seeds', type=int, default=1, help='how many seeds, from 0')
  parser.add_argument('--learning_rate', type=float, default=1e-4)
  arguments = parser.parse_args()
  write_photographs(arguments.out / 'photographs')
  features, rows = {}, []
  for seed in range(arguments.seeds):
    for alpha in ALPHAS:
      config = settings(alpha, seed, arguments)
      training.pretrain(config)
      features[seed, alpha] = features_of(config)
      rows.append(describe(alpha, seed, config, features[seed, alpha]))
  draw({alpha: features[0, alpha] for alpha in ALPHAS}, HERE / 'toy_2d.png')
  table = '\n'.join([
    f'Measured on {cpu_name()} (jax {jax.__version__}) by `python -m experiments.toy_2d '
    f'--size={arguments.size} --seeds={arguments.seeds} --learning_rate={arguments.learning_rate:g}`. The '
    f'losses are means of the last {LAST} steps.', '',
    '| α | seed | classification loss | consistency loss | cosine of views of one photograph '
    '| the same of the two nearest photographs |',
    '| ---: | ---: | ---: | ---: | ---: | ---: |', *rows]) + '\n'
  (HERE / 'results.md').write_text(table)
  print(table)


if __name__ == '__main__':
  guarded(run)
