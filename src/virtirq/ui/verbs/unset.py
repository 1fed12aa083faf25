"""``virtirq unset``: takes a guest's own setting, or one of its devices', out of libvirt."""

from __future__ import annotations

import argparse

from virtirq.ui import arguments, inputs
from virtirq.ui.output import show_all
from virtirq.ui.verbs import Verb
from virtirq.ui.verbs.set import change


def run(args: argparse.Namespace) -> int:
    return show_all(args, change(inputs.uri_of(args), args, None))


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guest(parser)
    arguments.device(parser)
    arguments.affected(parser, "change the running guest", "change what it is started from next")
    arguments.force(parser)


VERB = Verb(
    run,
    "take out a guest's own setting, or one of its devices'",
    arguments.STORED,
    _arguments,
    refused=arguments.RECORDED,
    own=("--config",),
)
