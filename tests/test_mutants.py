"""That each patch of tests/mutants still applies, and names a test that is there."""
import subprocess

import pytest

from tests.checkout import ROOT
from tests.mutants.__main__ import all_mutants, read


@pytest.mark.parametrize('mutant', all_mutants(), ids=lambda mutant: mutant.path.stem)
def test_a_patch_applies_and_its_test_exists(mutant):
  subprocess.run(['git', 'apply', '--check', mutant.path], cwd=ROOT, check=True, capture_output=True)
  file, _, test = mutant.test.partition('::')
  assert f'def {test}(' in (ROOT / file).read_text()
  assert mutant.fault.endswith('.')


def test_a_patch_without_a_test_is_refused(tmp_path):
  (tmp_path / 'some.patch').write_text('A fault.\n\ndiff')
  with pytest.raises(ValueError, match=r'some\.patch: the second line must be "Killed by: "'):
    read(tmp_path / 'some.patch')
