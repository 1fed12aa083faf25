"""The verbs, a file each: its arguments and what it does.

A verb's module has ``VERB``. It is imported when the verb is typed, or when all are listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Final

from virtirq.values import dataclass

NAMES: Final = (
    *("status", "top", "plan", "apply", "restore", "check", "explain", "place", "compare"),
    *("get", "set", "unset", "define", "dumpxml"),
    *("draw", "report"),
    *("daemon", "events", "metrics", "record", "config", "demo", "help"),
)
"""In the order in which the help lists them."""


@dataclass(frozen=True, slots=True)
class Verb:
    """`run` gives the exit code. `help` is a line, and `more` what the verb's own help adds to it.

    `refused` are common options that it has no use for: its help leaves them out, and it says why
    when they are given all the same. `own` are those that mean something else after this verb.
    `lasts`: it goes on until somebody stops it, or for minutes.
    """

    run: Callable[[argparse.Namespace], int]
    help: str
    more: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    refused: Collection[str] = ()
    own: Collection[str] = ()
    lasts: bool = False


def load(name: str) -> Verb:
    """The verb of this name, one of `NAMES`."""
    verb: Verb = import_module(f"{__name__}.{name}").VERB
    return verb
