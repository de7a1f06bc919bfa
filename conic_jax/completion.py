"""The command that prints how a shell completes `conic`: commands, protocols, methods and fields.

  conic completion bash > ~/.local/share/bash-completion/completions/conic
  conic completion zsh  > ~/.zsh/_conic                                     # a folder of fpath
  conic completion fish > ~/.config/fish/completions/conic.fish
"""
import shlex
import sys

from conic_jax import command_line, config_files, console, fields
from conic_jax.errors import Help, UserError

SHELLS = ('bash', 'zsh', 'fish')
_USAGE = f'conic completion {"|".join(SHELLS)}'
_OF_FIELDS = ('pretrain', 'preview', 'plan')  # Commands whose flags are the fields of a pretraining.

_BASH = """\
_conic() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  [[ $word == = ]] && word=
  [[ $before == = ]] && before=${{COMP_WORDS[COMP_CWORD-2]}}
  if [[ $before == --method ]]; then words={methods}
  elif (( COMP_CWORD == 1 )); then words={commands}
  elif [[ ${{COMP_WORDS[1]}} == evaluate ]] && (( COMP_CWORD == 2 )); then words={protocols}
  elif [[ $word == --* ]]; then
    case ${{COMP_WORDS[1]}} in {of_fields}) words={flags};; esac
    compopt -o nospace 2> /dev/null
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _conic conic
"""
_ZSH = """\
#compdef conic
_conic() {{
  if [[ $words[CURRENT] == --method=* ]]; then compset -P '--method='; compadd -- ${{=:-{methods}}}
  elif [[ $words[CURRENT-1] == --method ]]; then compadd -- ${{=:-{methods}}}
  elif (( CURRENT == 2 )); then compadd -- ${{=:-{commands}}}
  elif [[ $words[2] == evaluate ]] && (( CURRENT == 3 )); then compadd -- ${{=:-{protocols}}}
  elif [[ $words[CURRENT] == --* && $words[2] == ({of_fields}) ]]; then compadd -S '' -- ${{=:-{flags}}}
  else _files
  fi
}}
if [[ $funcstack[1] == _conic ]]; then _conic "$@"; else compdef _conic conic; fi
"""
_FISH = """\
set -l of_fields {of_fields}
complete -c conic -n __fish_use_subcommand -f -a {commands}
function __conic_wants_protocol; set -l words (commandline -opc); test "$words[2..]" = evaluate; end
complete -c conic -n __conic_wants_protocol -f -a {protocols}
complete -c conic -n "__fish_seen_subcommand_from $of_fields" -l method -x -a {methods}
for flag in (string split ' ' -- {flags})
  complete -c conic -n "__fish_seen_subcommand_from $of_fields" -l (string trim -c '-=' -- $flag) -r
end
"""


def script(shell: str) -> str:
  """What a shell runs to complete `conic`.

  Args:
    shell: one of `SHELLS`.
  """
  methods = [name for name in config_files.own_names() if name not in console.PROTOCOLS]
  paths = [path for path, _ in fields.leaves(command_line.load('conic:folder'))]
  flags = [f'--{name}=' for name in ('method', 'out', *fields.SHORT, *paths)]
  separated = {'bash': '|', 'zsh': '|', 'fish': ' '}[shell].join(_OF_FIELDS)
  lists = {'methods': methods, 'commands': console.COMMANDS, 'protocols': console.PROTOCOLS, 'flags': flags}
  words = {name: ' '.join(found) for name, found in lists.items()}
  quoted = words if shell == 'zsh' else {name: shlex.quote(text) for name, text in words.items()}
  template = {'bash': _BASH, 'zsh': _ZSH, 'fish': _FISH}[shell]
  return template.format(**quoted, of_fields=separated)


def command() -> None:
  """Prints the script of the shell that is named."""
  def answer() -> None:
    given = sys.argv[1:]
    if given in (['--help'], ['-h']):
      raise Help(f'usage: {_USAGE}\n\n{__doc__}')
    if len(given) != 1 or given[0] not in SHELLS:
      raise UserError(f'Which shell? Usage: {_USAGE}.')
    print(script(given[0]), end='')
  command_line.guarded(answer)


if __name__ == '__main__':
  command()
