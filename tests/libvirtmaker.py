"""A real libvirt with its test driver: domains with passed-through devices, nothing mocked.

``test:///default`` lives in this process and is one for all connections, for as long as there is
one: `held` keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.needs import need_libvirt

URI = "test:///default"
LIVE, CONFIG = 1, 2

NIC = (
    "<hostdev mode='subsystem' type='pci' managed='yes'>"
    "<source><address domain='0' bus='0x82' slot='0' function='0'/></source></hostdev>"
)
GPU = (
    "<hostdev mode='subsystem' type='pci' managed='yes'>"
    "<source><address domain='0' bus='0x83' slot='0' function='0'/></source>"
    "<alias name='ua-gpu'/></hostdev>"
)
VF = (
    "<interface type='hostdev' managed='yes'><mac address='52:54:00:0a:0b:0c'/>"
    "<source><address type='pci' domain='0' bus='0x84' slot='0x10' function='1'/></source>"
    "</interface>"
)
POOLED = (
    "<interface type='network'><mac address='52:54:00:0a:0b:0d'/><source network='vfs'/>"
    "</interface>"
)
FOREIGN = "<a:tool xmlns:a='urn:a' cpuset='1'><a:kept/></a:tool>"


def domain_xml(
    name: str = "web", *, metadata: str = FOREIGN, devices: str = NIC + GPU + VF + POOLED
) -> str:
    return (
        f"<domain type='test'><name>{name}</name><metadata>{metadata}</metadata>"
        "<memory>8192</memory><vcpu>2</vcpu>"
        "<cputune><vcpupin vcpu='0' cpuset='2'/><vcpupin vcpu='1' cpuset='4'/></cputune>"
        f"<os><type>hvm</type></os><devices>{devices}</devices></domain>"
    )


@contextmanager
def held() -> Iterator[Any]:
    """The test driver's host, without the domain that it comes with."""
    libvirt = need_libvirt()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(URI)
    try:
        # An earlier test's objects may still be around, and with them its domains.
        for domain in connection.listAllDomains():
            active = domain.isActive()
            if domain.isPersistent():
                domain.undefine()
            if active:
                domain.destroy()
        yield connection
    finally:
        connection.close()


def ours(domain: Any, where: int = LIVE) -> str | None:
    """virtirq's element in the domain's metadata, None when there is none."""
    libvirt = need_libvirt()
    try:
        text: str = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "urn:virtirq:1", where)
    except libvirt.libvirtError:
        return None
    return "".join(line.strip() for line in text.splitlines())
