"""Where packages come from: this machine's own apt configuration, or the environment."""

from __future__ import annotations

import os

from . import process
from .errors import BuildError

MIRROR = "VIRTIRQ_LAB_MIRROR"
SECURITY_MIRROR = "VIRTIRQ_LAB_SECURITY_MIRROR"


def entries(suite: str) -> list[str]:
    """The one-line apt sources of a suite, its updates and its backports.

    apt takes packages from the backports only where it is told to. The suite need not be the one
    this machine runs: only the address is taken from it. A machine without apt (or with another
    distribution's) names a mirror in the environment.
    """
    sites = _configured()
    main = os.environ.get(MIRROR) or sites.get("Debian")
    security = os.environ.get(SECURITY_MIRROR) or sites.get("Debian-Security")
    if main is None:
        raise BuildError(f"apt on this machine knows no Debian mirror: set {MIRROR} to one")
    found = [f"deb {main} {suite} main", f"deb {main} {suite}-backports main"]
    if security is not None:
        found.append(f"deb {security} {suite}-security main")
    return found


def _configured() -> dict[str, str]:
    if os.environ.get(MIRROR):
        return {}
    process.need("apt-get")
    listing = process.call(
        ["apt-get", "indextargets", "--format", "$(LABEL)|$(SITE)", "Created-By: Packages"]
    )
    pairs = (line.split("|", 1) for line in listing.splitlines() if "|" in line)
    return {label: site for label, site in pairs if site}
