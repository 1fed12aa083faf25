"""The terminal of ``top``: draws lines, gives keys. All of curses is in here.

curses and not rich: it reads keys, too, knows what each terminal can, and sends what has changed
alone, which is what counts over a slow line.
"""

from __future__ import annotations

import curses
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from virtirq.errors import UsageError
from virtirq.ui.document import Style
from virtirq.ui.top import keys
from virtirq.ui.top.app import App
from virtirq.ui.top.screen import ScreenLine

_COLOURS: Final[Mapping[Style, int]] = {
    "good": curses.COLOR_GREEN,
    "warn": curses.COLOR_YELLOW,
    "bad": curses.COLOR_RED,
}
_KEYS: Final[Mapping[int, str]] = {
    curses.KEY_UP: keys.UP,
    curses.KEY_DOWN: keys.DOWN,
    curses.KEY_PPAGE: keys.PAGE_UP,
    curses.KEY_NPAGE: keys.PAGE_DOWN,
    curses.KEY_HOME: keys.HOME,
    curses.KEY_END: keys.END,
    curses.KEY_ENTER: keys.ENTER,
    curses.KEY_BACKSPACE: keys.BACKSPACE,
}
_CONTROLS: Final = {
    "\n": keys.ENTER,
    "\r": keys.ENTER,
    "\x1b": keys.ESCAPE,
    "\b": keys.BACKSPACE,
    "\x7f": keys.BACKSPACE,
}
_HINT: Final = "set TERM to what it is, such as xterm, or use --batch"
_ESCAPE: Final = 25
"""Milliseconds that a key's sequence may take to come whole; a single Escape waits as long."""


def run(app: App, updates: int | None) -> None:
    """Until the person, or SIGTERM, ends it, or after so many updates. Raises UsageError."""
    term = os.environ.get("TERM", "")[:40]
    try:
        curses.setupterm(fd=1)
    except curses.error:
        raise UsageError(f"nothing is known of the terminal {term!r}", hint=_HINT) from None
    if not curses.tigetstr("cup"):  # ncurses would draw all lines over each other
        raise UsageError(f"the cursor of the terminal {term!r} cannot be moved", hint=_HINT)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with suppress(KeyboardInterrupt, _EndedError):
            _in_window(app, updates)
    finally:
        signal.signal(signal.SIGTERM, before)


class _EndedError(Exception):
    """SIGTERM: the terminal is left as it was found."""


def _end(*_: object) -> None:
    raise _EndedError


def _in_window(app: App, updates: int | None) -> None:
    """As curses.wrapper(), which also turns colours on where nobody wants them."""
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        window.keypad(True)
        curses.set_escdelay(_ESCAPE)
        with suppress(curses.error):
            curses.curs_set(0)
        _loop(window, app, updates, _attributes())
    finally:
        window.keypad(False)
        curses.endwin()


def _loop(window: Any, app: App, updates: int | None, attributes: Mapping[Style, int]) -> None:
    due = time.monotonic() + app.state.every
    while True:
        _draw(window, app, attributes)
        window.timeout(max(0, round(1000 * (due - time.monotonic()))))
        key = _key(window)
        if key is not None:
            if not app.press(key, window.getmaxyx()[0]):
                return
            if key == "r":
                due = time.monotonic() + app.state.every
        if time.monotonic() < due:
            continue
        due = time.monotonic() + app.state.every
        if not (app.state.paused or app.state.over or app.state.typing):
            app.update()
            updates = None if updates is None else updates - 1
            if updates == 0:
                return


def _key(window: Any) -> str | None:
    """What was pressed; None when nothing was in time, or the window has another size."""
    try:
        read = window.get_wch()
    except curses.error:
        return None
    if read == curses.KEY_RESIZE:
        window.clearok(True)  # what a terminal makes of its lines then, nobody knows
        return None
    return _KEYS.get(read) if isinstance(read, int) else _CONTROLS.get(read, str(read))


def _draw(window: Any, app: App, attributes: Mapping[Style, int]) -> None:
    height, width = window.getmaxyx()
    window.erase()
    for number, line in enumerate(app.lines(width, height)):
        _write(window, number, line, attributes)
    window.refresh()


def _write(window: Any, number: int, line: ScreenLine, attributes: Mapping[Style, int]) -> None:
    # The last cell of the screen takes its text and cannot move on: that is no error to us.
    with suppress(curses.error):
        window.move(number, 0)
        for span in line:
            text = span.text.encode("utf-8", "replace").decode()
            reverse = curses.A_REVERSE if span.reverse else 0
            window.addstr(text, attributes[span.style] | reverse)


def _attributes() -> Mapping[Style, int]:
    """Colours where the terminal has them and nobody minds (NO_COLOR)."""
    found: dict[Style, int] = {
        "": curses.A_NORMAL,
        "bold": curses.A_BOLD,
        "dim": curses.A_DIM,
        "good": curses.A_NORMAL,
        "warn": curses.A_BOLD,
        "bad": curses.A_BOLD,
    }
    if os.environ.get("NO_COLOR") or not curses.has_colors():
        return found
    with suppress(curses.error):
        curses.start_color()
        curses.use_default_colors()
        pairs: Sequence[tuple[Style, int]] = tuple(_COLOURS.items())
        for number, (style, colour) in enumerate(pairs, start=1):
            curses.init_pair(number, colour, -1)
            found[style] = curses.color_pair(number) | (curses.A_BOLD if style == "bad" else 0)
    return found
