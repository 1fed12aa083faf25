"""``virtirq draw``: a picture of the host: its CPUs, the guests on them, and each vector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from virtirq.errors import EXIT_OK, UsageError
from virtirq.ui import arguments, inputs, pages
from virtirq.ui.document import Document
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb

if TYPE_CHECKING:
    from virtirq.ui.scene import Scene


def run(args: argparse.Namespace) -> int:
    if args.json:
        raise UsageError(
            "draw writes a picture, not JSON",
            hint="'virtirq status --json' tells what is in it",
        )
    suffix = pages.suffix_of(args.output, pages.PICTURES)
    given = inputs.gather(args)
    view = inputs.look(given, args, counts=True)
    with inputs.naming(given):
        view = inputs.only(view, args.guests)
    from virtirq.model import counted
    from virtirq.ui import picture, scene

    scenes = [scene.now(view.snapshot, view.plan)]
    if args.plan:
        scenes.append(scene.planned(view.snapshot, view.plan))
    if not all(each.readable for each in scenes):
        raise UsageError(
            f"{len(view.plan.actions)} interrupts are too many for one picture",
            hint="name the guests that are to be in it: virtirq draw GUEST…",
        )
    pages.write(args.output, _rendered(suffix, scenes))
    counts = scenes[0].counts
    document = Document()
    document.line(
        f"{args.output}: {counted(sum(counts.values()), 'interrupt')}"
        f" of {counted(len(view.plan.guests), 'guest')}"
        + "".join(f", {number} {picture.WORDS[each]}" for each, number in counts.items() if number)
    )
    if str(args.output) != pages.STDOUT:
        show(args, dict, lambda: document)
    return EXIT_OK


def _rendered(suffix: str, scenes: Sequence[Scene]) -> bytes:
    from virtirq.ui import picture

    if suffix == ".html":
        return pages.html("virtirq", [picture.element(scenes)]).encode()
    text = picture.svg(scenes)
    return pages.png(text) if suffix == ".png" else text.encode()


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guests(parser)
    arguments.output(parser, "the picture: .svg, .html or .png; - for SVG on stdout")
    parser.add_argument(
        "--plan", action="store_true", help="beside it, as it will be after 'virtirq apply'"
    )


VERB = Verb(
    run,
    "draw the host: nodes, cores, guests, devices and the way of each interrupt",
    "What a viewer shows where the pointer is tells the facts. It has no script and loads nothing.",
    _arguments,
    refused=("--json",),
)
