"""One QEMU process and the talk with its monitor."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.patience import Patience

from .errors import BootError, LabError

_SILENCE = 180.0


class Qemu:
    """A running QEMU that ends with this object, or with this process at the latest."""

    def __init__(self, command: Sequence[str], log: Path, *, timeout: float = 300) -> None:
        ours, theirs = socket.socketpair()
        monitor = [
            *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
            *("-mon", "chardev=qmp,mode=control"),
        ]
        # QEMU must not outlive a killed test run. The kernel watches the thread that starts
        # it: start the lab from a thread that lasts as long as the lab.
        guard = ["setpriv", "--pdeathsig", "KILL", "--"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LD_")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*guard, *command, *monitor],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env=clean | {"QEMU_MODULE_DIR": str(log.parent)},
            )
        theirs.close()
        self._log = log
        self.console = log.parent / "console.log"
        self._socket = ours
        self._socket.settimeout(timeout)
        self._reader = ours.makefile("r")
        try:
            self._receive()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def execute(self, command: str, **arguments: Any) -> Any:
        """A monitor command's result; events that come in between are not for us."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._gone() from error
        while True:
            reply = self._receive()
            if "error" in reply:
                raise LabError(f"QEMU, {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def human(self, line: str) -> str:
        """A command of the monitor for people, for what QMP does not tell."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def forwarded_port(self) -> int:
        """The port of 127.0.0.1 that leads into the machine; QEMU chose a free one."""
        listing = self.human("info usernet")
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", listing)
        if match is None:
            raise LabError(f"QEMU forwards no port:\n{listing}")
        return int(match[1])

    def save(self, target: Path) -> None:
        """Stop the machine and write its memory and devices to a file."""
        self.execute("stop")
        self.execute("migrate-set-parameters", **{"max-bandwidth": 0})
        self.execute("migrate", uri=f"file:{target}")
        self._migrated()

    def load(self, source: Path) -> None:
        """Go on from what `save` wrote; for a QEMU started with `-incoming defer`."""
        self.execute("migrate-incoming", uri=f"file:{source}")
        self._migrated()
        self.execute("cont")  # it was saved while stopped

    def _migrated(self) -> None:
        patience, before = Patience(_SILENCE), None
        while not patience.ended():
            state = self.execute("query-migrate")
            if state.get("status") == "completed":
                return
            if state.get("status") == "failed":
                raise BootError(f"snapshot: {state.get('error-desc', 'failed')}{self._tail()}")
            if state.get("ram") != before:
                before = state.get("ram")
                patience.sign()
            time.sleep(0.02)
        raise BootError(f"snapshot: no progress for {patience.since:.0f} s")

    def alive(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        """How the machine is, and the end of what it said on its console."""
        how = "QEMU runs still" if self.alive() else f"QEMU ended{self._tail()}"
        said = self.console.read_text(errors="replace")[-3000:]
        return f"{how}; its console ends with:\n{said}"

    def close(self) -> None:
        """End this QEMU and no other."""
        if self.alive():
            self._process.kill()  # its disk is thrown away: nothing to be saved
        self._process.wait()
        self._reader.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._reader.readline()
        except TimeoutError as error:
            raise LabError("QEMU's monitor does not answer") from error
        except OSError as error:
            raise self._gone() from error
        if not line:
            raise self._gone()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _gone(self) -> BootError:
        return BootError(f"QEMU ended{self._tail()}")

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "".join(f"\n  {line}" for line in lines[-5:])
