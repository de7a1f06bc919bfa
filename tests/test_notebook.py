"""The notebook runs from the first cell to the last."""
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from xla_flags import xla_flags

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings('ignore')
def test_the_notebook_runs(tmp_path, monkeypatch):
  notebook = nbformat.read(ROOT / 'experiments' / 'colab.ipynb', as_version=4)
  settings = next(cell for cell in notebook.cells if cell.source.startswith('EPOCHS ='))
  smaller = {'encoder.width': 0.25, 'probe.images': 200, 'eval.linear': False}
  settings.source = f'EPOCHS = 1\nRUNS = {str(tmp_path)!r}\nSETTINGS = {smaller}'
  monkeypatch.setenv('JUPYTER_PLATFORM_DIRS', '1')
  monkeypatch.setenv('XLA_FLAGS', xla_flags(1))
  kernel = tmp_path / 'kernels' / 'kernels' / 'python3'
  kernel.mkdir(parents=True)
  (kernel / 'kernel.json').write_text(
    f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"], '
    '"display_name": "Python 3", "language": "python"}')
  monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'kernels'))
  NotebookClient(notebook, timeout=300, kernel_name='python3',
                 resources={'metadata': {'path': str(ROOT / 'experiments')}}).execute()
  pictures = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs
              if 'image/png' in output.get('data', {})]
  assert len(pictures) == 4
  last = notebook.cells[-1].outputs[-1]
  assert last['data']['text/plain'] == '(1, 32)'
  shutil.rmtree(tmp_path / 'images')
