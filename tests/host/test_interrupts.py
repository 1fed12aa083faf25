"""Interrupts of passed-through functions, and interrupts that go while they are read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeDevice, MadeFs, MadeHost, MadeInterrupt, passthrough
from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import count_all, read_interrupts, read_vector_load
from virtirq.host.pci import list_addresses, read_devices
from virtirq.host.scratch import open_host
from virtirq.host.topology import read_topology
from virtirq.model import Gap, Interrupt, InterruptKind, PciAddress
from virtirq.policy.counts import by_cpu

NIC = PciAddress.parse("0000:82:00.0")
GPU = PciAddress.parse("0000:01:00.0")
RECORDED = Path(__file__).parents[3] / "shared" / "hosts"


def read(
    fs: HostFs, *devices: PciAddress, possible: str = "0-7"
) -> tuple[tuple[Interrupt, ...], tuple[Gap, ...]]:
    reader = Reader(fs)
    return read_interrupts(reader, devices, CpuSet.parse(possible)), reader.gaps


def irqs(interrupts: Iterable[Interrupt]) -> list[int]:
    return [each.irq for each in interrupts]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("symlinked", [False, True])
@pytest.mark.parametrize("kind", InterruptKind)
def test_one_vector(kind: InterruptKind, symlinked: bool, live: bool) -> None:
    device = passthrough(
        str(NIC), first_irq=40, kind=kind.value, affinity="2-3", effective="3", counts={0: 5, 6: 7}
    )
    host = MadeHost(devices=(device,), symlinked=symlinked)
    found, gaps = read(host.live() if live else host.fs(), NIC)
    intx = kind is InterruptKind.INTX
    action = f"vfio-intx({NIC})" if intx else f"vfio-{kind.value}[0]({NIC})"
    assert found == (
        Interrupt(
            irq=40,
            device=NIC,
            kind=kind,
            vector=None if intx else 0,
            actions=(action,),
            affinity=CpuSet.parse("2-3"),
            effective=CpuSet.parse("3"),
            counts={0: 5, 6: 7},
            settable=True,
        ),
    )
    assert gaps == ()


def test_in_order_and_once() -> None:
    host = MadeHost(
        devices=(
            passthrough(str(NIC), vectors=3, first_irq=100),
            passthrough(str(GPU), vectors=2, first_irq=200, kind="msi"),
            passthrough("0000:05:00.0", vectors=9, first_irq=300),
        )
    )
    found, gaps = read(host.fs(), NIC, GPU, NIC)
    assert irqs(found) == [200, 201, 100, 101, 102]
    assert [each.vector for each in found] == [0, 1, 0, 1, 2]
    assert gaps == ()


def test_vectors_are_numbered_by_the_action_and_not_by_the_irq() -> None:
    vectors = [MadeInterrupt(40 + n, (f"vfio-msix[{5 - n}]({NIC})",)) for n in range(3)]
    found, _ = read(MadeHost(devices=(MadeDevice(str(NIC), vectors=vectors),)).fs(), NIC)
    assert [(each.irq, each.vector) for each in found] == [(40, 5), (41, 4), (42, 3)]


@pytest.mark.parametrize(
    "actions",
    [
        (),
        ("nvme0q1",),
        (f"vfio-msix[]({NIC})",),
        (f"vfio-msix[x]({NIC})",),
        (f"vfio-msix[123456]({NIC})",),
        (f"vfio-msix[1]({GPU})",),
        ("vfio-msix[1](0000:82:00.0) evil",),
        ("vfio-msix[1]",),
        ("\x1b[2J",),
    ],
)
def test_vectors_of_other_drivers_have_no_number(actions: tuple[str, ...]) -> None:
    device = MadeDevice(str(NIC), driver="nvme", vectors=(MadeInterrupt(40, actions),))
    found, _ = read(MadeHost(devices=(device,)).fs(), NIC)
    assert found[0].vector is None
    assert found[0].actions == actions


class TestIntx:
    def test_a_line_that_is_not_in_use_is_none(self) -> None:
        """Every function names a line; most never raise it."""
        line = MadeInterrupt(16, ("i801_smbus",))
        device = replace(passthrough(str(NIC), vectors=1, first_irq=40), line=16)
        found, gaps = read(MadeHost(devices=(device,), interrupts=(line,)).fs(), NIC)
        assert irqs(found) == [40]
        assert gaps == ()

    def test_a_line_without_a_descriptor(self) -> None:
        host = MadeHost(
            devices=(MadeDevice(str(NIC), line=11), passthrough("0000:05:00.0", first_irq=40))
        )
        for fs in (host.fs(), host.live(), replace(host, foreign=True).fs()):
            found, gaps = read(fs, NIC)
            assert found == ()
            assert gaps == ()

    def test_a_shared_line_counts_for_each(self) -> None:
        shared = MadeInterrupt(16, (f"vfio-intx({NIC})", "i801_smbus", f"vfio-intx({GPU})"))
        host = MadeHost(devices=[MadeDevice(str(each), intx=shared) for each in (NIC, GPU)])
        found, _ = read(host.fs(), NIC, GPU)
        assert [(each.irq, each.device) for each in found] == [(16, GPU), (16, NIC)]
        assert {each.kind for each in found} == {InterruptKind.INTX}
        assert [each.own_action for each in found] == [f"vfio-intx({GPU})", f"vfio-intx({NIC})"]
        assert found[0].actions == shared.actions

    def test_with_plain_msi_the_file_names_the_first_vector(self) -> None:
        device = replace(passthrough(str(NIC), vectors=2, first_irq=40, kind="msi"), line=40)
        found, _ = read(MadeHost(devices=(device,)).fs(), NIC)
        assert [(each.irq, each.kind) for each in found] == [
            (40, InterruptKind.MSI),
            (41, InterruptKind.MSI),
        ]

    def test_names_that_are_not_recorded_are_a_gap(self) -> None:
        host = MadeHost(
            devices=(passthrough(str(NIC), kind="intx", first_irq=16),),
            foreign=True,
            removed=("/sys/kernel",),
        )
        found, gaps = read(host.fs(), NIC)
        assert found == ()
        assert Gap("/sys/kernel/irq/16/actions", "not in this recording") in gaps

    def test_names_that_may_not_be_read_are_a_gap(self) -> None:
        fs = MadeHost(devices=(passthrough(str(NIC), kind="intx", first_irq=16),)).live()
        fs.faults["/sys/kernel/irq/16/actions"] = errno.EACCES
        found, gaps = read(fs, NIC)
        assert found == ()
        assert gaps == (Gap("/sys/kernel/irq/16/actions", os.strerror(errno.EACCES)),)


class TestCounts:
    """per_cpu_count has a number for each possible CPU, online or not."""

    def test_by_possible_cpu(self) -> None:
        device = passthrough(str(NIC), first_irq=40, counts={1: 10, 9: 3, 4: 0})
        host = MadeHost(online="0-1,8", possible="0-1,4,8-9", devices=(device,))
        found, gaps = read(host.fs(), NIC, possible="0-1,4,8-9")
        assert found[0].counts == {1: 10, 9: 3}
        assert gaps == ()

    @pytest.mark.parametrize(
        "text",
        ["", "1", "1,2,3", "1,2,3,4,5", "1,2,3,x", "1,,2,3", "0,0,0,00", f"1,2,3,{'9' * 5000}"],
    )
    def test_nonsense(self, text: str) -> None:
        path = "/sys/kernel/irq/40/per_cpu_count"
        device = passthrough(str(NIC), first_irq=40)
        host = MadeHost(online="0-3", devices=(device,), files={path: text})
        found, gaps = read(host.fs(), NIC, possible="0-3")
        assert found[0].counts is None
        assert found[0].affinity == CpuSet.parse("0-3")
        assert [gap.path for gap in gaps] == [path]

    @pytest.mark.parametrize("count", [65, 1025, 8192])
    def test_many_cpus(self, count: int) -> None:
        last = count - 1
        device = passthrough(
            str(NIC), first_irq=40, counts={last: 2**40}, affinity=str(last), effective=str(last)
        )
        host = MadeHost(online=f"0-{last}", devices=(device,), siblings=(), llcs=())
        found, gaps = read(host.fs(), NIC, possible=f"0-{last}")
        assert found[0].counts == {last: 2**40}
        assert found[0].affinity == found[0].effective == CpuSet([last])
        assert gaps == ()


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                ["0", "0", "1", "10", "4294967295", "", "x", "-1", "00", "01", "1_0", "٣"]
            ),
            st.integers(0, 2**64).map(str),
        ),
        max_size=12,
    ),
    st.integers(1, 12),
)
def test_any_counts(numbers: list[str], cpus: int) -> None:
    path = "/sys/kernel/irq/40/per_cpu_count"
    device = passthrough(str(NIC), first_irq=40)
    fs = MadeHost(online=f"0-{cpus - 1}", devices=(device,), files={path: ",".join(numbers)}).fs()
    found, gaps = read(fs, NIC, possible=f"0-{cpus - 1}")
    told = len(numbers) == cpus and all(
        each.isascii() and each.isdecimal() and each == str(int(each)) for each in numbers
    )
    if told:
        assert found[0].counts == {
            cpu: int(count) for cpu, count in enumerate(numbers) if int(count)
        }
    else:
        assert found[0].counts is None
    assert [gap.path for gap in gaps] == ([] if told else [path])


def test_without_known_cpus_counts_cannot_be_told_apart_and_are_not_read() -> None:
    fs = MadeHost(devices=(passthrough(str(NIC), first_irq=40, counts={0: 1}),)).live()
    (found,) = read_interrupts(Reader(fs), [NIC], CpuSet())
    assert (found.irq, found.kind) == (40, InterruptKind.MSIX)
    assert found.counts is None
    assert not any(path == paths.IRQ_COUNTS.at(40) for _, path in fs.calls)
    fs.free(40)
    assert read_interrupts(Reader(fs), [NIC], CpuSet()) == ()


@pytest.mark.parametrize(("mode", "settable"), [(0o644, True), (0o600, True), (0o444, False)])
def test_settable(mode: int, settable: bool) -> None:
    device = MadeDevice(str(NIC), vectors=(MadeInterrupt(40, mode=mode),))
    found, _ = read(MadeHost(devices=(device,)).fs(), NIC)
    assert found[0].settable is settable


def test_not_started_has_no_effective_affinity() -> None:
    device = passthrough(str(NIC), first_irq=40, affinity="0-3", effective="")
    found, gaps = read(MadeHost(devices=(device,)).fs(), NIC)
    assert found[0].effective is None
    assert gaps == ()


class TestOnceForADevice:
    """What is the same for all of a device's vectors is asked of one of them."""

    def test_of_vfio(self) -> None:
        fs = MadeHost(devices=(passthrough(str(NIC), vectors=50, first_irq=40),)).live()
        found, _ = read(fs, NIC)
        assert {each.settable for each in found} == {True}
        assert [path for operation, path in fs.calls if operation == "mode"] == [
            "/proc/irq/40/smp_affinity_list"
        ]

    def test_of_a_driver_of_the_hosts(self) -> None:
        """The kernel manages some of its vectors, and others not (nvme has both)."""
        vectors = [
            MadeInterrupt(40 + n, (f"nvme0q{n}",), mode=0o444 if n else 0o644) for n in range(3)
        ]
        found, _ = read(MadeHost(devices=(MadeDevice(str(NIC), vectors=vectors),)).live(), NIC)
        assert [each.settable for each in found] == [True, False, False]

    def test_the_kind_is_what_vfio_calls_it(self) -> None:
        """The device may change from one to the other while it is read."""
        device = passthrough(str(NIC), vectors=2, first_irq=40, kind="msi")
        files = {f"/sys/bus/pci/devices/{NIC}/msi_irqs/40": "msix"}
        found, _ = read(MadeHost(devices=(device,), files=files).live(), NIC)
        assert {each.kind for each in found} == {InterruptKind.MSI}


# What may fail for one interrupt: the file, and the field that is then not known.
PARTS = [
    ("/proc/irq/40/smp_affinity_list", "affinity", False),
    ("/proc/irq/40/effective_affinity_list", "effective", True),
    ("/sys/kernel/irq/40/actions", "actions", False),
    ("/sys/kernel/irq/40/per_cpu_count", "counts", False),
]


class TestParts:
    HOST = MadeHost(devices=(passthrough(str(NIC), vectors=2, first_irq=40, counts={0: 1}),))

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENODEV])
    @pytest.mark.parametrize("live", [False, True])
    @pytest.mark.parametrize(("path", "field", "optional"), PARTS)
    def test_unreadable(
        self, path: str, field: str, optional: bool, live: bool, number: int
    ) -> None:
        fs = self.HOST.live() if live else self.HOST.fs()
        fs.faults[path] = number
        found, gaps = read(fs, NIC)
        assert irqs(found) == [40, 41]
        assert getattr(found[0], field) is None
        assert getattr(found[1], field) is not None
        assert gaps == (Gap(path, os.strerror(number)),)

    @pytest.mark.parametrize(("path", "field", "optional"), PARTS)
    def test_missing(self, path: str, field: str, optional: bool) -> None:
        found, gaps = read(replace(self.HOST, removed=(path,)).fs(), NIC)
        assert getattr(found[0], field) is None
        assert gaps == (() if optional else (Gap(path, os.strerror(errno.ENOENT)),))

    @pytest.mark.parametrize(("path", "field", "optional"), PARTS)
    def test_not_recorded(self, path: str, field: str, optional: bool) -> None:
        pattern = path.replace("40", "*")
        host = replace(self.HOST, removed=(pattern,), foreign=True)
        found, gaps = read(host.fs(), NIC)
        assert [getattr(each, field) for each in found] == [None, None]
        assert Gap(pattern, "not in this recording") in gaps

    @pytest.mark.parametrize("text", ["x", "0-", "99999"])
    @pytest.mark.parametrize(("path", "field"), [part[:2] for part in PARTS[:2]])
    def test_nonsense(self, path: str, field: str, text: str) -> None:
        found, gaps = read(replace(self.HOST, files={path: text}).fs(), NIC)
        assert getattr(found[0], field) is None
        assert [gap.path for gap in gaps] == [path]

    def test_the_mode_that_may_not_be_read(self) -> None:
        fs = self.HOST.fs()
        fs.faults["mode", "/proc/irq/40/smp_affinity_list"] = errno.EACCES
        found, _ = read(fs, NIC)
        assert [each.settable for each in found] == [None, True]


class TestVanishing:
    """A guest's driver gives vectors up while they are read. That is no gap, and no interrupt."""

    HOST = MadeHost(devices=(passthrough(str(NIC), vectors=4, first_irq=40, counts={1: 1}),))

    def accesses(self) -> int:
        fs = self.HOST.live()
        read(fs, NIC)
        return len(fs.calls)

    @pytest.mark.parametrize("opened", [False, True])
    def test_at_any_access(self, opened: bool) -> None:
        """`opened`: its file was open when the interrupt went; the kernel's errno differs then.

        fs/kernfs/file.c, kernfs_seq_start(): ENODEV; fs/proc/inode.c, proc_reg_read(): EIO.
        """
        seen = set()
        for at in range(self.accesses()):
            fs = self.HOST.live()
            left = at

            def before(operation: str, path: str, fs: MadeFs = fs) -> None:
                nonlocal left
                left -= 1
                if left == -1:
                    fs.free(42)
                    if opened and "/42" in path and operation == "read":
                        number = errno.EIO if path.startswith("/proc") else errno.ENODEV
                        raise OSError(number, os.strerror(number), path)

            fs.before = before
            found, gaps = read(fs, NIC)
            assert gaps == (), f"access {at}: {fs.calls[at]}"
            assert set(irqs(found)) >= {40, 41, 43}
            for each in found:
                # What was read whole before the interrupt went is told.
                assert None not in (each.actions, each.affinity, each.counts)
            seen.add(len(found))
        assert seen == {3, 4}

    def test_all_of_them(self) -> None:
        fs = self.HOST.live()

        def before(operation: str, path: str) -> None:
            if path == "/sys/kernel/irq/40/actions":
                for irq in range(40, 44):
                    fs.free(irq)

        fs.before = before
        assert read(fs, NIC) == ((), ())

    def test_the_whole_device(self) -> None:
        fs = self.HOST.live()
        fs.memory.drop(f"/sys/bus/pci/devices/{NIC}/msi_irqs")
        found, gaps = read(fs, NIC)
        assert (found, gaps) == ((), ())

    def test_a_number_that_comes_back_as_another(self) -> None:
        fs = self.HOST.live()
        fs.set("/sys/kernel/irq/42/actions", "nvme0q7")
        found, _ = read(fs, NIC)
        assert found[2].own_action is None
        assert found[2].vector is None

    def test_a_number_that_another_device_has_by_now(self) -> None:
        fs = self.HOST.live()
        fs.set("/sys/kernel/irq/42/actions", f"vfio-msix[2]({GPU})")
        fs.before = lambda operation, path: (
            fs.memory.drop(f"/sys/bus/pci/devices/{NIC}/msi_irqs/42")
            if path == "/sys/kernel/irq/42/actions"
            else None
        )
        found, gaps = read(fs, NIC)
        assert irqs(found) == [40, 41, 43]
        assert gaps == ()

    def test_a_recording_frees_none(self) -> None:
        host = replace(self.HOST, removed=("/proc/irq/42", "/sys/kernel/irq/42"))
        found, gaps = read(host.fs(), NIC)
        assert irqs(found) == [40, 41, 42, 43]
        assert (found[2].actions, found[2].affinity) == (None, None)
        assert len(gaps) == 3

    def test_of_the_load(self) -> None:
        host = MadeHost(interrupts=[MadeInterrupt(n, affinity="1") for n in range(5)])
        for operation, number in (("free", 0), ("open", errno.EIO)):
            fs = host.live()

            def before(_: str, path: str, fs: MadeFs = fs, number: int = number) -> None:
                if path == "/proc/irq/3/effective_affinity_list":
                    fs.free(3)
                    if number:
                        raise OSError(number, os.strerror(number), path)

            fs.before = before
            reader = Reader(fs)
            assert read_vector_load(reader) == {1: 4}, operation
            assert reader.gaps == ()


class TestLoad:
    def test_by_cpu(self) -> None:
        host = MadeHost(
            interrupts=(
                MadeInterrupt(0, effective="0"),
                MadeInterrupt(1, effective="0"),
                MadeInterrupt(2, effective="7"),
                MadeInterrupt(3, effective=""),
                MadeInterrupt(4, effective="2-3"),
            ),
            files={"/proc/irq/default_smp_affinity": "ff"},
        )
        reader = Reader(host.fs())
        assert read_vector_load(reader) == {0: 2, 7: 1, 2: 1, 3: 1}
        assert reader.gaps == ()

    def test_what_cannot_be_read_is_told(self) -> None:
        fs = MadeHost(interrupts=[MadeInterrupt(n, effective="1") for n in range(4)]).live()
        fs.faults["/proc/irq/1/effective_affinity_list"] = errno.EACCES
        fs.set("/proc/irq/2/effective_affinity_list", "x")
        reader = Reader(fs)
        assert read_vector_load(reader) == {1: 2}
        assert {gap.path for gap in reader.gaps} == {
            "/proc/irq/1/effective_affinity_list",
            "/proc/irq/2/effective_affinity_list",
        }

    def test_a_kernel_without_effective_affinity(self) -> None:
        gone = ("/proc/irq/*/effective_affinity_list",)
        host = MadeHost(interrupts=(MadeInterrupt(1), MadeInterrupt(2)), removed=gone)
        reader = Reader(host.fs())
        assert read_vector_load(reader) == {}
        assert reader.gaps == ()
        reader = Reader(replace(host, foreign=True).fs())
        assert read_vector_load(reader) == {}
        assert [gap.error for gap in reader.gaps] == ["not in this recording"]

    def test_no_interrupts_at_all(self) -> None:
        reader = Reader(MadeHost(removed=("/proc/irq",), foreign=True).fs())
        assert read_vector_load(reader) == {}
        assert reader.gaps == (Gap("/proc/irq", "not in this recording"),)


def test_what_all_have_counted_takes_a_read_each() -> None:
    host = MadeHost(
        possible="0-9",
        interrupts=[MadeInterrupt(n, counts={n: 7 + n} if n else {}) for n in range(4)],
    )
    fs = host.fs()
    before = dict(count_all(fs, CpuSet.parse("0-9")))
    assert {irq: by_cpu(each) for irq, each in before.items()} == {
        0: {},
        1: {1: 8},
        2: {2: 9},
        3: {3: 10},
    }
    assert [each for each, path in fs.calls if path.endswith("/per_cpu_count")] == ["read"] * 4
    assert dict(count_all(fs, CpuSet.parse("0-9"), before)) == {}
    fs.set(paths.IRQ_COUNTS.at(2), "0,0,10,0,0,0,0,0,0,0")
    ((irq, now),) = count_all(fs, CpuSet.parse("0-9"), before)
    assert (irq, by_cpu(now)) == (2, {2: 10})
    fs = host.live()
    fs.free(2)
    fs.faults["/sys/kernel/irq/3/per_cpu_count"] = errno.EACCES
    assert dict(count_all(fs, CpuSet.parse("0-9"))).keys() == {0, 1}
    assert dict(count_all(MadeHost(removed=("/sys/kernel/irq",)).fs(), CpuSet.parse("0-7"))) == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["msi", "msix"]),
            st.integers(0, 12),
            st.frozensets(st.integers(0, 99), min_size=1, max_size=5),
        ),
        max_size=4,
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_set_of_devices_comes_back(
    described: list[tuple[str, int, frozenset[int]]], symlinked: bool, old_msi: bool
) -> None:
    devices = [
        passthrough(
            f"{n:04x}:00:00.0",
            vectors=count,
            first_irq=1000 * (n + 1),
            kind=kind,
            affinity=str(CpuSet(cpus)),
            counts=dict.fromkeys(cpus, n + 1),
        )
        for n, (kind, count, cpus) in enumerate(described)
    ]
    host = MadeHost(
        online="0-99", devices=devices, symlinked=symlinked, old_msi=old_msi, siblings=(), llcs=()
    )
    found, gaps = read(host.fs(), *(PciAddress.parse(d.address) for d in devices), possible="0-99")
    assert gaps == ()
    expected = [
        (each.irq, kind, index, CpuSet(cpus), dict.fromkeys(cpus, n + 1))
        for n, (kind, _, cpus) in enumerate(described)
        for index, each in enumerate(devices[n].vectors)
    ]
    assert [(i.irq, i.kind.value, i.vector, i.affinity, i.counts) for i in found] == expected


def test_a_large_host_costs_the_same_for_each_interrupt() -> None:
    """64 devices with 256 vectors each: as many accesses for each as on a small host."""

    def accesses(devices: int) -> int:
        made = [
            passthrough(f"0000:{8 + n:02x}:00.0", vectors=256, first_irq=256 * (n + 1))
            for n in range(devices)
        ]
        fs = MadeHost(online="0-255", devices=made, siblings=(), llcs=()).live()
        addresses = [PciAddress.parse(each.address) for each in made]
        found, gaps = read(fs, *addresses, possible="0-255")
        assert len(found) == 256 * devices
        assert gaps == ()
        return len(fs.calls)

    one = accesses(1)
    assert one <= 9 * 256 + 2
    assert accesses(64) == 64 * one


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the hosts recorded by others are not here")
def test_a_host_that_hwloc_gathered() -> None:
    """Two sockets of 2012: 516 interrupt files, 128 vectors on one card, and no /proc/irq."""
    (archive,) = RECORDED.glob("32em64t-2n8c*.tar.bz2")
    fs = open_host(archive)
    reader = Reader(fs)
    topology = read_topology(reader)
    assert (str(topology.online), str(topology.possible)) == ("0-15", "0-127")
    assert [str(node.cpus) for node in topology.nodes.values()] == ["0-7", "8-15"]
    addresses = list_addresses(reader)
    devices = read_devices(reader, addresses)
    card = devices[NIC]
    assert (card.node, str(card.local_cpus), card.driver) == (1, "8-15", "mlx4_core")
    assert {each.node for each in devices.values()} == {-1, 0, 1}
    interrupts = read_interrupts(reader, addresses, topology.possible)
    of_card = [each for each in interrupts if each.device == NIC]
    assert len(of_card) == 128
    assert {each.kind for each in of_card} == {InterruptKind.MSIX}
    for each in interrupts:
        assert (each.actions, each.affinity, each.effective) == (None, None, None)
        assert (each.counts, each.settable) == (None, None)
    assert read_vector_load(reader) == {}
    files = sum(
        len(fs.listdir(f"{base}/{name}")) if name == "msi_irqs" else 1
        for address in addresses
        for base in [f"/sys/bus/pci/devices/{address}"]
        for name in fs.listdir(base)
        if name in ("msi_irqs", "irq")
    )
    assert files == 137 + 179
    assert {gap.path for gap in reader.gaps} >= {
        "/proc/irq/*/smp_affinity_list",
        "/proc/irq/*/effective_affinity_list",
        "/sys/kernel/irq/*/actions",
        "/sys/kernel/irq/*/per_cpu_count",
    }
    assert {gap.error for gap in reader.gaps} == {"not in this recording"}
