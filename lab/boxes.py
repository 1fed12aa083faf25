"""Fresh Debian hosts in namespaces: systemd, sshd and apt, on this machine's kernel.

For what needs hosts, and no device that works. A box is there within a second or two, and gone
without a trace: its root is an overlay over a tree of the cache, its changes are in memory, and
it has neither a network nor anything of this machine's that can be written: /proc/irq, /proc/sys
and /sys are read-only. It needs root.

A made host may stand in place of this machine's /proc/irq and /sys: interrupts are files there,
which are written as the kernel's are. lab/vmm.py is a guest for it.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.full import BuildError, trees
from lab.kernel import LabUnavailable, tool
from lab.patience import Patience

PACKAGES: Final = (
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "python3-apt",  # of Ansible's module
    "procps",
    "sudo",
    # What virtirq's own package depends on: a box has no network to fetch it from.
    "python3-cattr",
    "python3-defusedxml",
    "python3-prometheus-client",
    "python3-rich",
    "python3-shtab",
)
LIMIT: Final = 120.0
"""Seconds, served ones, after which a box that has not started never will."""
SOCKET: Final = "run/ssh-unix-local/socket"
"""Where systemd has sshd answer within a container: systemd-ssh-generator(8)."""

# $0: an empty directory; $1: the tree; $2: the box's name; $3: a made host, or nothing.
_START: Final = """\
mount --make-rprivate /
mount -t tmpfs -o mode=755 box "$0"
cd "$0"; mkdir upper work root
mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" box root
cd root; mkdir old
mount -t proc proc proc
for each in irq sys; do
    mount --bind "proc/$each" "proc/$each"; mount -o remount,bind,ro "proc/$each"
done
mount -t sysfs -o ro sysfs sys
if [ -n "$3" ]; then
    mount --bind "$3/proc/irq" proc/irq
    mkdir -p "$3/sys/fs/cgroup"; mount --bind "$3/sys" sys; mount -o remount,bind,ro sys
fi
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for each in null zero full random urandom tty; do
    touch "dev/$each"; mount --bind "/dev/$each" "dev/$each"
done
ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for each in run tmp; do mount -t tmpfs tmpfs "$each"; done
echo "$2" > etc/hostname
pivot_root . old
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . \
    sh -ec 'umount -l old; rmdir old; exec /sbin/init'
"""
# What ssh asks for a connection: hands it one to a socket of the box.
_CONNECT: Final = """\
import socket, sys
there = socket.socket(socket.AF_UNIX)
there.connect(sys.argv[1])
socket.send_fds(socket.socket(fileno=1), [b"\\0"], [there.fileno()])
"""


def tree(packages: Sequence[str] = ()) -> Path:
    """What boxes are made of, with these packages more; built once. Raises LabUnavailable."""
    try:
        return trees.tree("boxes", "minbase", (*PACKAGES, *packages))
    except BuildError as error:
        raise LabUnavailable(str(error)) from error


class Box:
    """One that runs."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        """Of its init, here."""
        self.socket = Path(f"/proc/{pid}/root/{SOCKET}")

    def run(self, command: str, *, check: bool = True, given: str | None = None) -> str:
        """What the shell's command prints, standard error included."""
        words = ["nsenter", "--all", f"--target={self.pid}", "--root", "env", "-i"]
        words += ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]
        done = subprocess.run(
            [*words, "sh", "-c", f"cd /; {command}"],
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {command!r} ended {done.returncode}: {done.stdout}")
        return done.stdout

    def put(self, file: Path, name: str) -> None:
        """Copies one of this machine's files."""
        self.run(f"base64 -d > {name}", given=base64.b64encode(file.read_bytes()).decode())


@contextmanager
def box(
    name: str, work: Path, host: Path | None = None, packages: Sequence[str] = ()
) -> Iterator[Box]:
    """A box that has started; `work` is a directory for its log.

    `host`: a tree with the /proc/irq and the /sys that it has. `packages`: what is installed in it
    beside `PACKAGES`. Raises LabUnavailable.
    """
    if os.geteuid() != 0:
        raise LabUnavailable("hosts in namespaces need root")
    made = tree(packages)
    words = [tool("setpriv"), "--pdeathsig=KILL", tool("unshare"), "--kill-child", "--fork"]
    words += ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]
    with _control_group(f"virtirq-lab-{os.getpid()}-{name}") as group:
        # The group is joined first: that of a new cgroup namespace is the one that it begins in.
        join = 'echo $$ > "$0"; exec "$@"'
        start = ["sh", "-ec", join, f"{group}/cgroup.procs", *words, "sh", "-ec", _START]
        with (work / "log").open("wb") as log:
            process = subprocess.Popen(
                [*start, str(work), str(made), name, "" if host is None else str(host)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield _started(name, process, work / "log")
        finally:
            process.kill()
            process.wait()


def _started(name: str, process: subprocess.Popen[bytes], log: Path) -> Box:
    patience = Patience(LIMIT, process.pid)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        if process.poll() is not None or patience.ended():
            raise LabUnavailable(f"no host in namespaces here: {log.read_text().strip()}")
        time.sleep(0.1)
        pids = children.read_text().split()
        if pids:
            made = Box(name, int(pids[0]))
            # A symbolic link on the way would lead out of the box.
            if made.socket.exists():
                made.run("systemctl is-system-running --wait", check=False)
                return made


@contextmanager
def _control_group(name: str) -> Iterator[Path]:
    """One of cgroup2, for a box's systemd to rule."""
    mounts = Path("/proc/self/mountinfo").read_text()
    found = re.search(r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", mounts, re.MULTILINE)
    if found is None:
        raise LabUnavailable("hosts in namespaces need a mount of cgroup2")
    group = Path(found[1], name)
    try:
        group.mkdir()
    except OSError as error:
        raise LabUnavailable(f"hosts in namespaces need a control group: {error}") from error
    try:
        yield group
    finally:
        patience = Patience(LIMIT)
        while not patience.ended():
            try:
                for each in sorted(group.rglob("*/"), key=lambda path: -len(path.parts)):
                    each.rmdir()
                group.rmdir()
            except OSError:  # who was killed has not gone yet
                time.sleep(0.1)
            else:
                break


def ssh_config(boxes: Iterable[Box], work: Path) -> Path:
    """Makes a key, lets it in as root, and gives a configuration for ssh that knows the boxes."""
    key, script, config = work / "key", work / "connect.py", work / "ssh_config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    script.write_text(_CONNECT)
    public = key.with_suffix(".pub").read_text()
    lines = [
        f"IdentityFile {key}",
        "IdentitiesOnly yes",
        "User root",
        "StrictHostKeyChecking no",
        f"UserKnownHostsFile {work}/known_hosts",
        "LogLevel ERROR",
        "ProxyUseFdpass yes",
    ]
    for each in boxes:
        each.run("umask 077; mkdir -p /root/.ssh; cat > /root/.ssh/authorized_keys", given=public)
        lines += [f"Host {each.name}"]
        lines += [f"    ProxyCommand {sys.executable} {script} {each.socket}"]
    config.write_text("\n".join([*lines, ""]))
    return config
