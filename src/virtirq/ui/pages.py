"""Files for people to look at: SVG, HTML that stands alone, and PNG."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from virtirq.errors import DependencyError, UsageError, VirtirqError, of_file
from virtirq.ui import progress

STDOUT: Final = "-"
PICTURES: Final = (".svg", ".html", ".png")
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever gets into a page, a browser neither runs nor loads anything for it."""


def suffix_of(file: Path, allowed: Sequence[str]) -> str:
    """What the name asks for; for standard output the first. Raises UsageError."""
    if str(file) == STDOUT:
        return allowed[0]
    if file.suffix.lower() not in allowed:
        known = f"{', '.join(allowed[:-1])} or {allowed[-1]}" if allowed[1:] else allowed[0]
        raise UsageError(
            f"{file}: what to write is told by the end of the name", hint=f"name it *{known}"
        )
    return file.suffix.lower()


def write(file: Path, data: bytes) -> None:
    """To the file, or standard output for ``-``. Raises DeploymentError, VirtirqError."""
    progress.end()
    if str(file) == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        raise of_file(file, error, VirtirqError) from error


def html(title: str, body: Sequence[Element], style: str = "") -> str:
    """A page that needs nothing else, in the reader's choice of light or dark."""
    root = Element("html", {"lang": "en"})
    head = SubElement(root, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width"})
    SubElement(head, "meta", {"name": "color-scheme", "content": "light dark"})
    SubElement(head, "title").text = title
    SubElement(head, "style").text = f"\n{_PAGE}{style}"
    SubElement(root, "body").extend(body)
    indent(root, " ")
    return f"<!DOCTYPE html>\n{tostring(root, encoding='unicode', method='html')}\n"


_PAGE: Final = """\
body {margin: 1em; background: #ffffff; color: #1f2733; font: 14px system-ui, sans-serif}
@media (prefers-color-scheme: dark) {body {background: #14181e; color: #e4e9ef}}
"""


def png(svg: str) -> bytes:
    """The picture in light colours, twice as large, to be readable. Raises DependencyError."""
    try:
        import resvg_py
    except ImportError:
        raise DependencyError(
            "the Python module resvg_py is not installed, which makes PNG of the picture",
            hint="pip install 'virtirq[png]', or write a .svg or .html: browsers show both",
        ) from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2))
