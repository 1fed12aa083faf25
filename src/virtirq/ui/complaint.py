"""An error, as the person or the program that runs the command reads it."""

from __future__ import annotations

import re
import sys
from typing import Any

from virtirq.errors import VirtirqError


def complain(error: VirtirqError, *, as_json: bool) -> int:
    """Tell it on standard error: in a line or two, or as one line of JSON; the exit code.

    Standard output has the answer, or nothing: whoever reads JSON there never meets an error.
    """
    if as_json:
        import json

        print(json.dumps({"schema": 1, "error": error_json(error)}), file=sys.stderr)
        return error.exit_code
    from virtirq.ui.document import printable

    print(printable(f"virtirq: error: {error}"), file=sys.stderr)
    if error.hint:
        print(printable(f"hint: {error.hint}"), file=sys.stderr)
    return error.exit_code


def error_json(error: VirtirqError) -> dict[str, Any]:
    return {
        "kind": kind_of(type(error)),
        "message": str(error),
        "hint": error.hint,
        "exit": error.exit_code,
        "retryable": error.retryable,
    }


def kind_of(class_: type[VirtirqError]) -> str:
    """The name of the class as one word: ``unknown-guest`` of UnknownGuestError."""
    if class_ is VirtirqError:
        return "failed"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", class_.__name__.removesuffix("Error")).lower()
