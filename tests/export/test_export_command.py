"""The command on a run, and the card that it writes."""
import sys

import pytest
import torch
from encoders import difference, draw_images, features_of, write_run
from safetensors.torch import load_file
from torch_resnet import ResNet as TorchResNet

from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import standalone
from conic_jax.export import __main__ as main
from conic_jax.export import card

FIGURES = {'step': 6, 'num_images': 48, 'knn_top1': 0.8125, 'random_init': {'knn_top1': 0.25}, 'note': 'none'}


@pytest.fixture
def run(tiny_config, tmp_path):
  """A run of a tiny encoder with a stem for small images: (its folder, its encoder, the variables)."""
  folder = tmp_path / 'run'
  return folder, *write_run(tiny_config, folder, FIGURES)


@pytest.fixture
def command(monkeypatch):
  """Runs the command; gives what it exits with."""
  def execute(*arguments):
    monkeypatch.setattr(sys, 'argv', ['export', *map(str, arguments)])
    try:
      main.command()
    except SystemExit as exit:
      return exit.code
    return 0
  return execute


def test_a_run_is_exported_with_its_card(run, command, tmp_path, capsys):
  folder, network, variables = run
  out = tmp_path / 'new' / 'encoder.safetensors'
  written_card = out.with_name('encoder.safetensors.md')
  assert command(folder, '--to=safetensors', f'--out={out}') == 0
  assert capsys.readouterr().out.split() == [str(out), str(written_card)]
  module = TorchResNet(network.blocks, network.bottleneck, 8, 'cifar').eval()
  module.load_state_dict(load_file(out), strict=True)
  images = draw_images(16)
  with torch.no_grad():
    features = module(torch.tensor(images.transpose(0, 3, 1, 2)))
  assert difference(features, features_of(network, variables, images)) <= 1e-4

  text = written_card.read_text()
  assert text.startswith('---\nlicense: unknown\n')
  assert '\n- self-supervised\n' in text
  for part in ('pretrained with conic', '| data | folder, images', "split 'train', 48 images |",
               '| training | without labels, 2 epochs, batch 16', '8 features',
               '| summary | knn_top1 | 0.8125 |', '| summary | random_init.knn_top1 | 0.25 |',
               "load_file('encoder.safetensors')", '0.485', '16 × 16 pixels', '"learning_rate"'):
    assert part in text
  assert str(tmp_path) not in text
  assert '| note |' not in text

  written = out.read_bytes()
  assert 'is there already' in command(folder, '--to=safetensors', f'--out={out}')
  assert out.read_bytes() == written


@pytest.mark.slow
def test_a_file_is_evaluated_as_its_run(run, tiny_config, tmp_path):
  folder, file = run[0], tmp_path / 'x.safetensors'
  main.export(folder, 'safetensors', file)
  of_run, of_file = load('configs/knn.py'), load('configs/knn.py:photos')
  of_run.encoder, of_file.encoder = str(folder), str(file)
  of_file.data.update(tiny_config.data)
  of_file.views.size = of_file.eval.resize = of_file.eval.batch_size = 16
  of_file.eval.k, of_file.run = (3, 5), str(tmp_path / 'file')
  assert standalone.evaluate(of_file) == standalone.evaluate(of_run)
  assert (tmp_path / 'file' / 'knn_photos.json').read_bytes() == (folder / 'knn.json').read_bytes()


def test_mistakes_are_one_sentence(run, command, tmp_path):
  folder, _, _ = run
  out = f'--out={tmp_path / "x.pkl"}'
  assert "stem is 'cifar'" in command(folder, '--to=detectron2', out)
  assert 'is no run' in command(tmp_path / 'nothing', '--to=detectron2', out)
  assert "no target 'caffe' for --to; available: torchvision, " in command(folder, '--to=caffe', out)
  assert "no module 'mine.onnx'" in command(folder, '--to=mine.onnx', out)
  assert '--upload takes a folder' in command(folder, '--to=detectron2', out, '--upload=me/it')
  assert 'usage' in command(folder, out)
  assert 'usage' in command()
  (folder / 'knn.json').write_text('{"knn_top1": ')
  assert 'knn.json cannot be read' in command(
    folder, '--to=safetensors', f'--out={tmp_path / "x.safetensors"}')
  assert {path.name for path in tmp_path.iterdir()} == {'run'}


def test_figures_are_numbers(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": 1}')
  (tmp_path / 'conic_jax.json').write_text('{"format": 1}')
  (tmp_path / 'linear.json').write_text('{"top1": 0.5, "rates": [1, 2], "name": "x", "best": {"rate": 3}}')
  assert card.read_figures(tmp_path) == {('linear', 'top1'): 0.5, ('linear', 'best.rate'): 3}
  (tmp_path / 'linear.json').write_text('[1]')
  with pytest.raises(UserError, match=r'linear\.json cannot be read'):
    card.read_figures(tmp_path)
