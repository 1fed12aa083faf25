"""The cases that people reported, as they were handed down: only where they are there."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.cases.room import Room
from tests.conftest import REPOSITORY
from virtirq.cpuset import CpuSet
from virtirq.guests.processes.command_line import read_command_line
from virtirq.guests.processes.values import split
from virtirq.host.tree import ArchiveFs, Entry
from virtirq.model import PciAddress
from virtirq.policy.config import parse_config

CASES = REPOSITORY.parent / "shared/cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")


def room(case: str, *names: str, config: str = "") -> Room:
    (folder,) = CASES.glob(f"{case}-*")
    xml = [(folder / f"{name}.xml").read_text() for name in names or ("guest",)]
    return Room(folder / "host.tar.xz", xml, (folder / config).read_text() if config else "")


def every(made: Room) -> set[int]:
    assert made.on
    return set(made.load)


def test_a1_device_by_qemu_arg() -> None:
    assert room("a1").on == room("a1", "same-as-hostdev").on
    assert room("a1").on == {"0000:43:10.0": ["4", "5", "6"]}


def test_a2_one_node_without_number() -> None:
    assert every(room("a2", config="local.toml")) == {0, 8, 16, 24}


def test_a3_hybrid_cores() -> None:
    made = room("a3")
    cpus, emulator, _ = made.place("bazzite")
    topology = made.snapshot.topology
    assert topology.performance
    assert CpuSet.parse(cpus) <= topology.performance
    assert CpuSet.parse(emulator or "") <= topology.efficiency


def test_a4_pool_on_isolated_cpus() -> None:
    made = room("a4")
    (found,) = [each for each in made.findings if each.code == "pool-on-isolated"]
    assert "'virtirq place windows'" in (found.hint or "")
    assert made.place("windows")[0] == "3-18"


def test_a5_kernel_without_numa() -> None:
    made = room("a5")
    assert made.place("win") == made.place("win", node=0)
    assert made.codes == {"vcpus-not-pinned"}


def test_a6_microvm_nix() -> None:
    words = split((CASES / "a6-microvm-nix/cmdline").read_bytes().decode())
    told = read_command_line(words, "qemu-system-x86_64")
    assert (told.vmm, told.name) == ("qemu", "my-vm")
    assert told.uuid == "33333333-2222-4333-8444-555555555555"
    assert told.devices == (PciAddress.parse("0000:41:00.0"),)


def test_a7_rule_by_address() -> None:
    text = (CASES / "a7-rule-by-address/virtirq.toml").read_text()
    rules = parse_config([("virtirq.toml", text)]).rules
    assert [(each.device, each.address) for each in rules] == [
        *(("0000:01:00.0", None), (None, "0000:01:00.1"))
    ]


def test_a8_v_cache() -> None:
    assert room("a8").place("gaming")[0] == "0-7,16-23"


def test_a9_emulatorpin_kept() -> None:
    assert room("a9").place("win11-games")[1] is None


def test_b01_cgroup_isolated_partition() -> None:
    assert every(room("b01", "local")) <= {0, 1, 2, 3, 6, 7}
    assert "isolated-conflict" in room("b01", "explicit").codes
    assert every(room("b01", "unpinned")) <= set(range(8))
    assert every(room("b01", "rt", "floating")) <= set(range(8))


def test_b02_local_flips_to_nohz_full() -> None:
    for them in (("dedicated",), ("dedicated", "floating")):
        made = room("b02", *them)
        assert made.target("0000:3b:02.0") == "0-3"
        assert "isolated-conflict" not in made.codes


def test_b04_emulator_on_its_own_isolated_cpu() -> None:
    assert room("b04").findings == ()


def test_b05_sub_numa_same_socket() -> None:
    assert "node-mismatch" not in room("b05").codes
    assert "node-mismatch" in room("b05", "remote").codes
    assert "on the wrong node" not in " ".join(a.reason.text for a in room("b05").plan.actions)


def test_b06_device_on_memory_only_node() -> None:
    made = room("b06", "unpinned")
    assert {made.target(device) for device in made.on} == {"8-15"}


def test_b07_many_devices_few_vectors() -> None:
    load = room("b07").load
    assert (len(load), set(load.values())) == (48, {1})


def test_b09_stx_mask() -> None:
    assert every(room("b09", "spaces")) == {5, 6, 7}
    assert {cpus for those in room("b09", "invalid").on.values() for cpus in those} == {"-"}


def test_b10_realtime_vcpus() -> None:
    assert every(room("b10")) == {8, 9}


def test_b11_nosmt_node_mismatch() -> None:
    assert room("b11").codes == {"target-offline"}


def test_b12_vendor_vfio() -> None:
    (guest,) = room("b12").plan.guests
    assert [each.target is not None for each in guest.devices] == [True]
    assert "not a VFIO driver" not in guest.devices[0].note


def test_c1_name_is_a_uuid() -> None:
    text = (CASES / "c1-name-is-a-uuid/guest.xml").read_text()
    assert Room(CASES / "a1-device-by-qemu-arg/host.tar.xz", [text]).known[0].name


class Without(ArchiveFs):
    """A recorded tree that lacks the lists of what is online."""

    def _entry(self, path: str) -> Entry | None:
        gone = path.endswith(("system/cpu/online", "system/node/online"))
        return None if gone else super()._entry(path)


def test_c4_no_online_files() -> None:
    (tree,) = (CASES.parent / "hosts").glob("32em64t*")
    made = Room(Without(tree), ["<domain><name>vm</name><vcpu cpuset='8-9'>2</vcpu></domain>"])
    topology = made.snapshot.topology
    assert CpuSet.parse("8-9") <= topology.online
    assert len(topology.nodes) > 1
    assert "vcpus-not-pinned" not in made.codes
    assert Counter(gap.path for gap in made.snapshot.gaps)["/sys/devices/system/cpu/online"] == 1
