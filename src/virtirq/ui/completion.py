"""What a shell completes: the script that asks, and the values that it is given.

The script comes from the parser, by shtab. For guests, devices, columns and the like it runs
``virtirq --complete-values KIND WORD -- WORDS…``, which no help tells of: the word so far, and the
words before it.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from virtirq.errors import DependencyError, VirtirqError
from virtirq.model import Guest, Word
from virtirq.ui import verbs

_PATIENCE: Final = 3.0
"""Seconds after which a person who has pressed Tab gets nothing."""
_SAFE: Final = re.compile(r"(?!-)[\w.:@%+,=/-]+")
"""A name that no shell takes for more than a name, nor virtirq for an option: a guest's may hold
anything."""

_DIRECTIVES: Final = tuple(word.value for word in Word)

_BASH: Final = r"""
# Prints the values of kind $1 that begin with $2.
_virtirq_values() {
  local value
  while IFS= read -r value; do
    [[ $value == "$2"* ]] && printf '%s\n' "$value"
  done < <("${COMP_WORDS[0]/#\~/$HOME}" --complete-values "$1" "$2" -- \
    "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)
}
"""
_BASH_KIND: Final = """_virtirq_{kind}() {{ _virtirq_values {kind} "$1"; }}
"""
_BASH_END: Final = r"""
# COMP_WORDBREAKS has a colon, at which PCI addresses would be several words.
_virtirq() {
  local -a joined=()
  local cword=0 cut i last=
  for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
    if [[ $i -gt 0 && ( ${COMP_WORDS[i]} == :* || $last == *: ) ]]; then
      joined[${#joined[@]} - 1]+=${COMP_WORDS[i]}
    else
      joined+=("${COMP_WORDS[i]}")
    fi
    last=${COMP_WORDS[i]}
    [[ $i -eq $COMP_CWORD ]] && cword=$((${#joined[@]} - 1))
  done
  local COMP_WORDS=("${joined[@]}") COMP_CWORD=$cword
  _shtab_virtirq
  last=${COMP_WORDS[COMP_CWORD]}
  cut=${last%"${last##*:}"}
  for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=${COMPREPLY[i]#"$cut"}; done
}

complete -o bashdefault -F _virtirq virtirq
"""
_ZSH: Final = r"""
# Offers the values of kind $1. `words` lacks what stands before the verb.
_virtirq_values() {
  local -a typed found
  typed=(${(Q)${(z)LBUFFER}})
  [[ $LBUFFER == *[[:space:]] ]] || typed[-1]=()
  found=(${(f)"$($typed[1] --complete-values $1 "$PREFIX" -- "${(@)typed[2,-1]}" 2>/dev/null)"})
  compadd -a found
}
"""
_ZSH_KIND: Final = """_virtirq_{kind}() {{ _virtirq_values {kind} }}
"""
_FISH: Final = r"""
# The values of kind $argv[1].
function _virtirq_values
    set -l typed (commandline -opc)
    $typed[1] --complete-values $argv[1] (commandline -ct) -- $typed[2..-1] 2>/dev/null
end
"""


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The completion for the shell. Raises DependencyError where shtab is too old to make it."""
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:  # fish: not Debian 13's 1.7.1
        raise DependencyError(
            f"the shtab that is installed makes no completion for {shell}",
            hint="a later one does: pip install --upgrade shtab",
        )
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, made in action.choices.items():
                made.description = verbs.load(name).help  # a list of verbs has a line for each
    preamble = {
        "bash": _BASH + "".join(_BASH_KIND.format(kind=kind) for kind in KINDS),
        "zsh": _ZSH + "".join(_ZSH_KIND.format(kind=kind) for kind in KINDS),
        "fish": _FISH,
    }
    made = str(shtab.complete(parser, shell=shell, preamble=preamble[shell]))
    return made + _BASH_END if shell == "bash" else made


def print_values(arguments: Sequence[str]) -> None:
    """What fits, one value a line; nothing where anything is wrong: nobody asked to be told."""
    kind, current, *rest = [*arguments, "", ""]
    words = [word for word in rest[rest.index("--") + 1 :] if word] if "--" in rest else []
    with suppress(VirtirqError, OSError, ValueError, KeyError):
        for value in dict.fromkeys(KINDS[kind](Asked(words, current))):
            if _SAFE.fullmatch(value):
                print(value)


class Asked(NamedTuple):
    """The words before the one that is completed, and what there is of that."""

    words: Sequence[str]
    current: str


def _context(words: Sequence[str]) -> argparse.Namespace:
    """The options of the words that say whose guests are meant, and its verb."""
    found = argparse.Namespace(
        sysroot=None, domains=[], config=None, connect=None, verb=None, typed=[]
    )
    taking = {"-s": "sysroot", "--sysroot": "sysroot", "-c": "connect", "--connect": "connect"}
    taking |= {"--domain": "domains", "--config": "config"}
    pending = ""
    for word in words:
        name, equals, value = word.partition("=")
        if pending:
            name, value, equals, pending = pending, word, "=", ""
        if name in taking and equals:
            where = taking[name]
            setattr(found, where, [*found.domains, value] if where == "domains" else value)
        elif name in taking:
            pending = name
        elif not word.startswith("-"):
            if found.verb is None and word in verbs.NAMES:
                found.verb = word
                for own in verbs.load(word).own:
                    taking.pop(own, None)
            else:
                found.typed.append(word)
    return _as_paths(found)


def _as_paths(found: argparse.Namespace) -> argparse.Namespace:
    from pathlib import Path

    found.sysroot = found.sysroot and Path(found.sysroot).expanduser()
    found.config = found.config and Path(found.config).expanduser()
    found.domains = [Path(each).expanduser() for each in found.domains]
    return found


def _known(words: Sequence[str]) -> tuple[argparse.Namespace, list[Guest]]:
    from virtirq.ui import inputs

    context = _context(words)
    if inputs.asks_libvirt(context):  # it may hang, in a call that nothing interrupts
        late = threading.Timer(_PATIENCE, os._exit, (0,))
        late.daemon = True
        late.start()
    defined = context.verb in ("get", "set", "unset", "place", "dumpxml")
    found = inputs.gather(context, defined=defined)
    return context, [*found.guests, *found.found.stopped]


def _guests(asked: Asked) -> Iterable[str]:
    yield from sorted(guest.name for guest in _known(asked.words)[1])


def _devices(asked: Asked) -> Iterable[str]:
    """Those of the guest that was typed; without one, all."""
    context, guests = _known(asked.words)
    named = [guest for guest in guests if guest.name in context.typed]
    for guest in named or guests:
        yield from sorted(str(device.address) for device in guest.devices)


def _settable(asked: Asked) -> Iterable[str]:
    """A device, or what is asked for: ``set GUEST [DEVICE] DIRECTIVE``."""
    yield from _DIRECTIVES
    if len(_context(asked.words).typed) < 2:
        yield from _devices(asked)


def _objects(asked: Asked) -> Iterable[str]:
    from virtirq.policy.advice import ADVICE

    yield from sorted(ADVICE)
    yield from _guests(asked)
    yield from _devices(asked)


def _columns_of(words: Sequence[str]) -> Iterable[str]:
    if _context(words).verb == "top":
        from virtirq.ui.top.table import COLUMNS as OF_TOP

        return OF_TOP
    from virtirq.ui.listing import COLUMNS

    return COLUMNS


def _columns(asked: Asked) -> Iterable[str]:
    """A list with one name more; after + as without it."""
    before, comma, _ = asked.current.rpartition(",")
    head = before + comma or ("+" if asked.current.startswith("+") else "")
    named = before.removeprefix("+").upper().split(",")
    yield from (head + name for name in _columns_of(asked.words) if name not in named)


def _column(asked: Asked) -> Iterable[str]:
    yield from _columns_of(asked.words)


KINDS: Final[Mapping[str, Callable[[Asked], Iterable[str]]]] = {
    "guests": _guests,
    "devices": _devices,
    "settable": _settable,
    "directives": lambda _: _DIRECTIVES,
    "objects": _objects,
    "columns": _columns,
    "column": _column,
    "verbs": lambda _: verbs.NAMES,
}
"""What may be asked for, by the names that `arguments.completed` has."""
