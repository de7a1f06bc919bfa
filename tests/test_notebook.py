"""The notebooks run from the first cell to the last."""
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from xla_flags import xla_flags

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]

ROOT = Path(__file__).parent.parent
# Fewer of the photographs' patches, fewer steps, and a smaller network.
FEWER = 'from conic_jax.data import photos\nphotos.GRID.update(train=5, test=6)'
SMALLER = {'encoder': {'width': 0.25, 'blocks': (1,)}, 'probe': {'images': 0}, 'knn_every': 0, 'max_steps': 4}


@pytest.fixture
def executed(tmp_path, monkeypatch):
  """Executes a notebook in a folder that has the library, with other settings in one of its cells."""
  monkeypatch.setenv('JUPYTER_PLATFORM_DIRS', '1')
  monkeypatch.setenv('XLA_FLAGS', xla_flags(1))
  kernel = tmp_path / 'kernels' / 'kernels' / 'python3'
  kernel.mkdir(parents=True)
  (kernel / 'kernel.json').write_text(
    f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"], '
    '"display_name": "Python 3", "language": "python"}')
  monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'kernels'))
  for name in ('conic_jax', 'configs'):
    (tmp_path / name).symlink_to(ROOT / name)
  (tmp_path / 'experiments').mkdir()

  def execute(name, settings):
    notebook = nbformat.read(ROOT / 'experiments' / name, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.source.startswith('EPOCHS ='))
    cell.source += f'\n{settings}'
    NotebookClient(notebook, timeout=300, kernel_name='python3',
                   resources={'metadata': {'path': str(tmp_path / 'experiments')}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == 'code']
  return execute


def shown(cell):
  """The value of the last line of a cell."""
  return cell.outputs[-1]['data']['text/plain']


def test_first_steps(executed):
  smaller = SMALLER | {'batch': 32, 'eval': {'linear': False}}
  cells = executed('colab.ipynb', f'{FEWER}\nEPOCHS, SETTINGS = 1, {smaller}')
  pictures = [output for cell in cells for output in cell.outputs if 'image/png' in output.get('data', {})]
  assert len(pictures) == 4
  assert shown(cells[-2]).startswith("[('coffee/000.jpg', 1.0")
  assert shown(cells[-1]) == '(256, 16)'


def test_explore_and_clean(executed):
  smaller = SMALLER | {'figures': False, 'eval': {'knn': False, 'linear': False, 'baselines': False}}
  cells = executed('explore.ipynb', f'EPOCHS, SETTINGS = 1, {smaller}')
  removed = shown(cells[-2])
  for name in ('astronaut', 'chelsea', 'coffee', 'rocket'):
    assert f'train/{name}/copy_of_train.jpg' in removed
    assert f'train/{name}/copy_of_test.jpg' in removed
  images, copies = eval(shown(cells[-1]))
  assert images == 4 * (48 + 12 + 2) + 2 - removed.count('train/')
  assert copies <= 2


def test_a_new_loss(executed):
  smaller = {'encoder.width': 0.25, 'encoder.blocks': (1,), 'probe.images': 0, 'eval.linear': False,
             'figures': False, 'max_steps': 4, 'batch_size': 32}
  cells = executed('new_loss.ipynb', f'{FEWER}\nEPOCHS, SETTINGS = 1, {smaller}')
  found = eval(shown(cells[-1]))
  assert set(found) == {'simclr', 'barlow'}
  (random, trained), (random_of_simclr, _) = found['barlow'], found['simclr']
  assert random == random_of_simclr != trained
