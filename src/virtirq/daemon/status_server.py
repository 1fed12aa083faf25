"""The daemon's side of its socket: whoever asks gets one JSON document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from virtirq.control.daemon_status import SOCKET, WAIT
from virtirq.errors import DeploymentError


class StatusServer:
    """Answers whoever asks, until `close`; `tell` gives the document."""

    def __init__(self, directory: Path, tell: Callable[[], Mapping[str, Any]]) -> None:
        self._path = directory / SOCKET
        self._tell = tell
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises DeploymentError."""
        try:
            self._path.unlink(missing_ok=True)  # of a daemon that was killed: we have the lock
            self._server = await asyncio.start_unix_server(self._answer, str(self._path))
            self._path.chmod(0o666)  # whoever may look at the host may look at this
        except OSError as error:
            raise DeploymentError(f"{self._path}: {error.strerror}") from error

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(WAIT):
                writer.write(json.dumps(self._tell()).encode())
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError):
            writer.transport.abort()  # close() alone would wait for who does not listen

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        with suppress(OSError):
            self._path.unlink()
