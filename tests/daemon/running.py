"""What the tests of parts that live in a running loop share."""

from __future__ import annotations

import asyncio

from virtirq.daemon.timers import Timers


def timers() -> Timers:
    """The running loop's; an error in what they call is asyncio's to tell."""
    loop = asyncio.get_running_loop()

    def failed(error: BaseException) -> None:
        loop.call_exception_handler({"message": "in a timer", "exception": error})

    return Timers(loop.call_later, loop.time, failed)
