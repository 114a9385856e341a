"""The verb `protlm completion`: a script that completes verbs, options and names of configs."""

from __future__ import annotations

import argparse
from pathlib import Path

SCRIPT = """\
_protlm() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  case ${{COMP_WORDS[1]}} in
{options}
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="{verbs}"
  [ "${{COMP_WORDS[COMP_CWORD-1]}}" = --config ] && words="{configs}"
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ -n $word && $word != -* && $COMP_CWORD -gt 1 ]] && COMPREPLY+=($(compgen -f -- "$word"))
}}
complete -o filenames -F _protlm protlm
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    verb.add_argument("shell", nargs="?", choices=("bash", "zsh"), default="bash")
    verb.epilog = (
        'In ~/.bashrc: eval "$(protlm completion)"; in ~/.zshrc: eval "$(protlm completion zsh)"'
    )


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script, made from the parser of all verbs."""
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    options = "\n".join(
        f'    {name}) words="{" ".join(verb._option_string_actions)}" ;;'
        for name, verb in verbs.choices.items()
    )
    configs = sorted(file.stem for file in (Path(__file__).parents[1] / "configs").glob("*.py"))
    before = "autoload -Uz bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return before + SCRIPT.format(
        options=options, verbs=" ".join(verbs.choices), configs=" ".join(configs)
    )
