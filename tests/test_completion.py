"""The shells complete `conic` with what the script says: each shell that is here is asked."""
import shutil
import subprocess

import pytest

from conic_jax import completion, console

# In bash: the words so far, the last of them completed. `=` is a word of its own, as readline splits there.
_ASK_BASH = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_conic; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# In zsh the completion system needs a terminal: zpty is one.
_ASK_ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PROMPT=; autoload -Uz compinit; compinit -u -d {folder}/dump'
zpty -w shell 'source {script}'
zpty -w shell 'bindkey "^I" complete-word; zstyle ":completion:*" list-colors ""; print rea""dy'
zpty -r -m shell line '*ready*'
zpty -w -n shell '{line}'$'\\t'
zpty -r -m shell line '*{wanted}*' && print -r -- "$line"
"""


@pytest.fixture(params=completion.SHELLS)
def shell(request):
  if shutil.which(request.param) is None:
    pytest.skip(f'{request.param} is not here')
  return request.param


@pytest.mark.parametrize(('line', 'wanted'), [
  ('conic ex', {'export', 'explore'}),
  ('conic evaluate s', {'semi', 'svm', 'segment'}),
  ('conic pretrain photos --method=in', {'inscon', 'instdisc'}),
  ('conic pretrain --checkpoint.',
   {'--checkpoint.every_epochs=', '--checkpoint.keep=', '--checkpoint.verify='})])
def test_words_are_completed(shell, tmp_path, line, wanted):
  script = tmp_path / 'script'
  script.write_text(completion.script(shell))
  if shell == 'bash':
    words = line.replace('=', ' = ')
    found = asked(['bash', '--norc', '-c', _ASK_BASH.format(script=script, words=words)])
    assert set(found.split()) == wanted
  elif shell == 'fish':
    found = asked(['fish', '-N', '-c', f'source {script}; complete -C {line!r}'])
    assert {word.split('\t')[0].removeprefix('--method=') for word in found.splitlines()} == {
      word.removesuffix('=') for word in wanted}
  else:
    for word in wanted:  # A whole word is left as it is, or gets its end.
      most = line.rpartition('=' if '=' in line else ' ')[0]
      begun = f'{most}{"=" if "=" in line else " "}{word[:-2]}'
      asking = _ASK_ZSH.format(folder=tmp_path, script=script, line=begun, wanted=word)
      assert word in asked(['zsh', '-f', '-c', asking])


def test_every_command_and_method_is_offered():
  script = completion.script('bash')
  for word in (*console.COMMANDS, *console.PROTOCOLS, 'conic_s', 'byol', '--views.crop=', '--epochs='):
    assert word in script
  assert 'common' not in script.split('--')[0]


def asked(command):
  done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
  assert not done.stderr, done.stderr
  return done.stdout
