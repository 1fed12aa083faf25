"""Pinning through libvirt's test driver, which pins emulators and refuses to pin vCPUs.

So this is about what is left when it goes wrong; `tests/full` pins for real.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.control.test_libvirt_settings import connection, host  # noqa: F401 - fixtures
from tests.libvirtmaker import domain_xml
from virtirq.control import libvirt_pinning
from virtirq.cpuset import CpuSet
from virtirq.errors import LibvirtError
from virtirq.guests.libvirt.connection import Affect, Connection
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.policy.place import Placement

SEATING = Placement(parse_domain(domain_xml()), 0, {0: 1, 1: 3}, CpuSet([5, 6]), near=1, devices=1)


@pytest.mark.parametrize("affect", [Affect.LIVE, Affect.CONFIG, Affect.LIVE | Affect.CONFIG])
def test_what_goes_wrong_is_taken_back(
    host: Any,  # noqa: F811 - the fixture
    connection: Connection,  # noqa: F811 - the fixture
    affect: Affect,
) -> None:
    domain = host.defineXML(domain_xml())
    domain.create()
    before = [domain.XMLDesc(flags) for flags in (0, 2)]
    with pytest.raises(LibvirtError, match=r"^cannot pin vCPU 0 of web to CPU 1: unsupported flag"):
        libvirt_pinning.place(connection, domain, SEATING, affect)
    after = [host.lookupByName("web").XMLDesc(flags) for flags in (0, 2)]
    if affect & Affect.LIVE:  # that all CPUs are allowed is now said
        after[0] = re.sub(r"\s*<emulatorpin cpuset='0-7'/>", "", after[0])
    assert after == before


MEMORY = {
    "none": ("", "<memory mode='preferred' nodeset='0'/>", []),
    "strict": (
        "<numatune><memory mode='strict' nodeset='1'/></numatune>",
        "<memory mode='strict' nodeset='0'/>",
        [],
    ),
    "numad's": (
        "<numatune><memory mode='strict' placement='auto'/></numatune>",
        "<memory mode='strict' placement='auto'/>",
        ["its memory is left as it is: numad places it"],
    ),
    "cells": (
        "<numatune><memnode cellid='0' mode='strict' nodeset='1'/></numatune>"
        "<cpu><numa><cell id='0' cpus='0-1' memory='8192'/></numa></cpu>",
        "<memnode cellid='0' mode='strict' nodeset='1'/>",
        ["its memory is left as it is: it has NUMA cells of its own"],
    ),
}


@pytest.mark.parametrize(("text", "after", "notes"), MEMORY.values(), ids=MEMORY)
def test_memory_comes_from_the_node(
    host: Any,  # noqa: F811 - the fixture
    connection: Connection,  # noqa: F811 - the fixture
    text: str,
    after: str,
    notes: list[str],
) -> None:
    domain = host.defineXML(domain_xml().replace("<os>", f"{text}<os>"))
    assert libvirt_pinning._remember(connection, domain, 0) == notes
    assert after in domain.XMLDesc(2)
