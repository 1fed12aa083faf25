"""KVM's counts of a guest's vCPUs, by whoever can tell of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeHost
from tests.libvirtmaker import URI, domain_xml, held
from virtirq.control.guest_statistics import GuestStatistics, guest_statistics
from virtirq.errors import UnavailableError
from virtirq.guests.libvirt.connection import SOURCE, connected, parse_vcpu_statistics
from virtirq.guests.processes.monitor import MALFORMED
from virtirq.guests.processes.statistics import parse_statistics
from virtirq.host import paths
from virtirq.model import Guest, Vcpu, VcpuCounts

NAMES = ("irq_exits", "halt_wakeup")
WEB = Guest("web", "process", pid=900, vcpus=(Vcpu(0), Vcpu(1)))
LIBVIRTS: dict[str, Any] = {
    "vcpu.current": 2,
    "vcpu.maximum": 2,
    "vcpu.0.state": 1,
    "vcpu.0.time": 38270000000,
    "vcpu.0.irq_exits.sum": 123,
    "vcpu.0.halt_wakeup.sum": 7,
    "vcpu.0.exits.sum": 999,
    "vcpu.0.blocking.cur": True,
    "vcpu.1.irq_exits.sum": 456,
}
"""As libvirt 11.3 has them, fewer."""
QEMUS = [
    {
        "provider": "kvm",
        "qom-path": f"/machine/unattached/device[{vcpu}]",
        "stats": [{"name": "irq_exits", "value": 10 * vcpu}, {"name": "exits", "value": 999}],
    }
    for vcpu in (1, 0, 5)
]
"""As QEMU 10.0 has them; the last is of a vCPU that has gone meanwhile."""
QEMUS_CPUS = [
    {"cpu-index": vcpu, "qom-path": f"/machine/unattached/device[{vcpu}]"} for vcpu in (0, 1)
]


def debugfs(**counts: int) -> MadeHost:
    """`vcpu0_irq_exits` is a count of it."""
    files = {}
    for key, value in counts.items():
        vcpu, _, name = key.partition("_")
        files[paths.KVM_VCPU_STATISTIC.at("900-12", vcpu, name)] = f"{value}\n"
    files[paths.KVM_VCPU_STATISTIC.at("901-12", "vcpu0", "irq_exits")] = "77\n"
    return MadeHost(files=files)


def told(host: MadeHost, guest: Guest = WEB, uri: str | None = None) -> VcpuCounts:
    with guest_statistics(host.live(), guest, uri, NAMES) as statistics:
        return statistics()


def test_debugfs_has_them_by_the_apic_of_the_vcpu() -> None:
    host = debugfs(vcpu0_irq_exits=1, vcpu4_irq_exits=2, vcpu4_halt_wakeup=3)
    assert told(host) == {0: {"irq_exits": 1}, 1: {"irq_exits": 2, "halt_wakeup": 3}}
    # One is only just being plugged in: whose they are is not known.
    host = debugfs(vcpu0_irq_exits=1, vcpu4_irq_exits=2, vcpu8_irq_exits=3)
    assert told(host).keys() == {0, 4, 8}
    assert told(MadeHost()) == {}
    assert told(host, Guest("web", "process", vcpus=WEB.vcpus)) == {}


def test_libvirts_answer() -> None:
    found = parse_vcpu_statistics(LIBVIRTS, NAMES)
    assert found == {0: {"irq_exits": 123, "halt_wakeup": 7}, 1: {"irq_exits": 456}}
    assert parse_vcpu_statistics({"vcpu.current": 2}, NAMES) == {}


def test_qemus_answer() -> None:
    assert parse_statistics(QEMUS, QEMUS_CPUS, NAMES) == {
        0: {"irq_exits": 0},
        1: {"irq_exits": 10},
    }
    assert parse_statistics([], QEMUS_CPUS, NAMES) == {}


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["qom-path", "stats", "name", "value", "cpu-index"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_no_answer_is_too_strange(told: Any, cpus: Any) -> None:
    with suppress(*MALFORMED):
        parse_statistics(told, cpus, NAMES)


def test_who_has_told_once_is_asked_from_then_on() -> None:
    """Two answers are to be compared: they come from one."""
    answers: list[VcpuCounts | None] = [None, {}, {0: {"irq_exits": 1}}, None, {}]

    def first() -> VcpuCounts:
        answer = answers.pop(0)
        if answer is None:
            raise UnavailableError("not now")
        return answer

    asked = GuestStatistics([first, lambda: {0: {"irq_exits": 900}} if len(answers) < 4 else {}])
    assert asked() == {}
    assert asked() == {0: {"irq_exits": 900}}
    assert asked() == {0: {"irq_exits": 900}}
    assert len(answers) == 3
    asked = GuestStatistics([first])
    assert [asked(), asked(), asked()] == [{0: {"irq_exits": 1}}, {}, {}]


def test_a_libvirt_without_them_leaves_it_to_debugfs() -> None:
    with held() as connection:
        domain = connection.createXML(domain_xml(), 0)
        uuid = domain.UUIDString()
        with connected(URI) as ours, pytest.raises(Exception, match="cannot read statistics"):
            ours.vcpu_statistics("00000000-0000-0000-0000-000000000000", NAMES)
        guest = Guest("web", SOURCE, uuid=uuid, pid=900, vcpus=(Vcpu(0),))
        assert told(debugfs(vcpu0_irq_exits=5), guest, URI) == {0: {"irq_exits": 5}}
