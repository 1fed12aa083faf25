"""``virtirq record``: this host, redacted, for ``--sysroot``, bug reports and tests."""

from __future__ import annotations

import argparse
from pathlib import Path

from virtirq.control import sources
from virtirq.errors import EXIT_OK
from virtirq.host import recording
from virtirq.ui import arguments, progress, report, screens
from virtirq.ui.document import Document
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    progress.step("reading guests")
    fs = sources.open_fs(args.sysroot)
    domains, gaps = sources.redacted_domains(
        fs,
        args.domains,
        uri=args.connect,
        default=sources.load_config(args.config, args.sysroot).libvirt.uri,
        keep_names=args.keep_names,
    )
    # Not the errors themselves, which may name guests.
    unread = {"guests": "not all were read when this host was recorded"} if gaps else {}
    progress.step(f"writing {args.file.name}")
    count = recording.record(fs, args.file, domains, unread)
    document = Document()
    document.line(f"{args.file}: {count} files; try: virtirq --sysroot {args.file} status")
    screens.gap_lines(document, gaps)
    data = {
        "schema": report.SCHEMA,
        "file": str(args.file),
        "files": count,
        "gaps": report.gaps_json(gaps),
    }
    show(args, lambda: data, lambda: document)
    return EXIT_OK


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep-names", action="store_true", help="do not rename the guests")
    arguments.completed_as_path(
        parser.add_argument(
            "file", metavar="FILE", type=Path, help="archive to write: .tar, .tar.gz, .bz2 or .xz"
        )
    )


VERB = Verb(run, "record this host for --sysroot, bug reports and tests", arguments=_arguments)
