"""virtirq.pyz: runs what is packed beside it, by a Python that can.

Python 3.6 must still understand this file, to find a newer one: nothing later in here.
"""

import glob
import importlib.util
import os
import sys
from typing import Optional, Tuple

OLDEST = (3, 11)
NEWEST = 30  # of the minor versions that are looked for
PLACES = (
    "/usr/lib/python3/dist-packages",  # Debian, where all versions share it
    "/usr/lib64/python{0}/site-packages",  # Fedora, RHEL
    "/usr/lib/python{0}/site-packages",  # Arch
    "/usr/local/lib64/python{0}/site-packages",  # pip
    "/usr/local/lib/python{0}/site-packages",
    "/usr/local/lib/python{0}/dist-packages",
)


def bindings(minor: int, root: str = "") -> Optional[str]:
    """Where libvirt's bindings for Python 3.minor are; None for nowhere."""
    for place in PLACES:
        directory = root + place.format(f"3.{minor}")
        if glob.glob(f"{directory}/libvirtmod.cpython-3{minor}-*.so"):
            return directory
    return None


def interpreter(minor: int, path: str) -> Optional[str]:
    """Where python3.minor is; None for nowhere."""
    for directory in path.split(os.pathsep):
        program = os.path.join(directory, f"python3.{minor}")
        if os.access(program, os.X_OK):
            return program
    return None


def better(version: Tuple[int, int], has_libvirt: bool, path: str, root: str = "") -> Optional[str]:
    """The program of a Python to be started in this one's place; None to go on with this one.

    This one, if it is new enough and has libvirt's bindings; else the newest that has them; else
    this one, if new enough; else the newest.
    """
    able = version >= OLDEST
    if able and (has_libvirt or bindings(version[1], root)):
        return None
    there = {}
    for minor in range(OLDEST[1], NEWEST):
        program = interpreter(minor, path)
        if program and (3, minor) != version:
            there[minor] = program
    having = [minor for minor in there if bindings(minor, root)]
    if having:
        return there[max(having)]
    return None if able or not there else there[max(there)]


def main() -> int:
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/local/bin:/usr/bin"
    has_libvirt = importlib.util.find_spec("libvirt") is not None
    version = sys.version_info[0], sys.version_info[1]
    other = better(version, has_libvirt, path)
    if other:
        os.execv(other, [other] + sys.argv)  # noqa: S606
    if version < OLDEST:
        sys.stderr.write("virtirq: error: Python {}.{} is too old\n".format(*version))
        sys.stderr.write("hint: install Python 3.11 or later beside it, such as python3.11\n")
        return 6
    place = bindings(version[1])
    if not has_libvirt and place:
        sys.path.append(place)  # last: all else that is there comes after what is packed here
    if sys.argv[1:2] in (["install"], ["uninstall"]):
        from pyz_install import main as put

        return put(sys.argv[1:])
    from virtirq.ui.cli import command as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
