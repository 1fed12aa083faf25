"""The cases that people reported, as they were handed down: only where they are there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cases.room import Room
from tests.conftest import REPOSITORY
from virtirq.control.cycle import apply, observe
from virtirq.cpuset import CpuSet
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.libvirt.rfcxml import to_attributes, to_metadata
from virtirq.guests.processes.command_line import read_command_line
from virtirq.guests.processes.values import split
from virtirq.host.scratch import ScratchFs
from virtirq.host.tree import ArchiveFs, Entry
from virtirq.model import Irqbalance, PciAddress
from virtirq.policy.config import Config, parse_config
from virtirq.policy.findings import findings
from virtirq.policy.plan import plan

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


def test_b08_257_vectors_live_ones_refused(tmp_path: Path) -> None:
    (folder,) = CASES.glob("b08-*")
    tmp_path.chmod(0o700)
    fs = ScratchFs(ArchiveFs(folder / "host.tar.xz"))
    guests = [parse_domain((folder / "guest.xml").read_text())]
    apply(fs, guests, Config(), tmp_path, [])
    seen = observe(fs, guests)
    live = [each for each in seen.interrupts if not each.idle]
    assert len(live) == 9
    assert {str(each.effective) for each in live} == {"8", "9"}
    found = findings(seen, plan(seen, Config()))
    assert [each.code for each in found] == ["vectors-low"]


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


def test_b14_banmod_variant_driver() -> None:
    irqbalance = Irqbalance(True, 900, banned=("vfio-pci",))
    assert not irqbalance.spares("mlx5_vfio_pci")
    assert replace(irqbalance, banned=("vfio",)).spares("mlx5_vfio_pci")


def test_c1_name_is_a_uuid() -> None:
    text = (CASES / "c1-name-is-a-uuid/guest.xml").read_text()
    assert Room(CASES / "a1-device-by-qemu-arg/host.tar.xz", [text]).known[0].name


def test_c2_two_of_one_mac() -> None:
    text = (CASES / "c2-two-of-one-mac/guest.xml").read_text()
    moved = to_metadata(text)
    assert [str(each.directive) for each in parse_domain(moved.text).devices] == ["4", "5"]
    assert to_attributes(moved.text).text == text


def test_c3_large_cpu_numbers() -> None:
    pinned = "<cputune><vcpupin vcpu='0' cpuset='16383'/></cputune>"
    text = f"<domain><name>m</name><vcpu cpuset='0-16383'>2</vcpu>{pinned}</domain>"
    assert [str(each.cpus) for each in parse_domain(text).vcpus] == ["16383", "0-16383"]


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


def test_none_is_missing() -> None:
    tests = [each for each in globals() if each.startswith("test_")]
    for folder in CASES.glob("*/"):
        number = folder.name.partition("-")[0]
        assert any(each.startswith(f"test_{number}_") for each in tests), folder.name
