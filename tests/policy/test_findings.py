"""Findings: each code when it is due, and not when it is not."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import (
    GPU,
    NIC,
    USB,
    carried_out,
    configs,
    cpus,
    function,
    guest,
    host,
    intx,
    intx_action,
    msix,
    snapshot,
    snapshots,
)
from virtirq.model import (
    NATIVE,
    Directive,
    Finding,
    GuestDevice,
    InterruptKey,
    Irqbalance,
    Node,
    Posting,
    Severity,
    Snapshot,
    Topology,
)
from virtirq.policy import stakes
from virtirq.policy.advice import ADVICE
from virtirq.policy.config import Config, Rule
from virtirq.policy.contention import Contention
from virtirq.policy.findings import (
    contested,
    events_polled,
    findings,
    followed,
    guests_not_read,
    irqbalance_untold,
    journal_unusable,
    left_alone,
    libvirt_silent,
    not_followed,
    rules_unmatched,
)
from virtirq.policy.plan import plan
from virtirq.policy.room import VECTORS_LOW

IRQBALANCE: Final = Irqbalance(running=True, pid=812)
POSTING: Final = Posting(active=True, basis="AVIC is on")
EXPLICIT: Final = Directive.parse("2-5")
ONE_NODE: Final = host(nodes=("0-7",))
BOTH: Final = [function(), function(GPU)]


def far(distance: int) -> Topology:
    """Two nodes so far from each other."""
    nodes = {
        number: replace(node, distances={number: 10, 1 - number: distance})
        for number, node in host().nodes.items()
    }
    return replace(host(), nodes=nodes)


def memory_only(*distances: int) -> Topology:
    """Two nodes with CPUs, and a third without, so far from those."""
    third = Node(2, cpus(""), dict(enumerate((*distances, 10))))
    return replace(host(), nodes={**far(40).nodes, 2: third})


def found(state: Snapshot, config: Config | None = None) -> tuple[Finding, ...]:
    config = config or Config()
    return findings(state, plan(state, config))


def asked(text: str, **more: object) -> Snapshot:
    return snapshot(guests=[guest(directive=Directive.parse(text))], **more)  # type: ignore[arg-type]


class Case(NamedTuple):
    """A host that calls for the finding, and hosts much like it that do not."""

    due: Snapshot
    subject: str
    message: str
    not_due: tuple[Snapshot, ...]


UNPINNED: Final = guest(pins=(None, "0-7"))
SHARED_BY_TWO: Final = {
    "pci": BOTH,
    "interrupts": [intx(16, NIC, intx_action(GPU)), intx(16, GPU, intx_action(NIC))],
}
MINE: Final = {
    "pci": BOTH,
    "interrupts": [
        intx(16, NIC, intx_action(GPU), at="0", on="0"),
        intx(16, GPU, intx_action(NIC), at="0", on="0"),
    ],
}

CASES: Final[dict[str, Case]] = {
    "vcpus-not-pinned": Case(
        snapshot(guests=[UNPINNED]),
        "vm",
        "its 2 vCPUs may run on every CPU",
        (
            snapshot(),
            snapshot(guests=[guest(pins=())]),
            snapshot(guests=[guest(pins=(None, "0"), directive=Directive(None, vcpus=cpus("1")))]),
            snapshot(guests=[guest(pins=(None, None), directive=EXPLICIT)]),
            snapshot(guests=[guest(pins=(None, None), directive=NATIVE)]),
            snapshot(guests=[guest(pins=(None, None), devices=())]),
        ),
    ),
    "emulator-not-pinned": Case(
        snapshot(guests=[guest(directive=Directive.parse("emulator"))]),
        "vm",
        "its emulator may run on every CPU",
        (
            snapshot(guests=[guest()]),
            snapshot(
                guests=[replace(guest(directive=Directive.parse("emulator")), emulator=cpus("3"))]
            ),
        ),
    ),
    "no-target": Case(
        snapshot(host("0-1,4-7"), guests=[guest(directive=Directive.parse("local"))]),
        f"vm {NIC}",
        "guests' vCPUs are pinned to all local CPUs 0-1: left alone; no interrupts yet",
        (
            snapshot(guests=[guest(directive=Directive.parse("local"))]),
            snapshot(guests=[UNPINNED], pci=[function(node=-1)]),
            snapshot(guests=[guest(directive=NATIVE)]),
        ),
    ),
    "node-mismatch": Case(
        snapshot(pci=[function(node=1)]),
        f"vm {NIC}",
        "vCPUs on CPUs 0-1, device on node 1 (CPUs 4-7)",
        (
            snapshot(),
            snapshot(pci=[function(node=1)], guests=[guest(pins=("0", "4"))]),
            snapshot(pci=[function(node=1)], guests=[UNPINNED]),
            snapshot(pci=[function(node=-1)]),
            snapshot(pci=[function(node=None)]),
            snapshot(host("0-3"), pci=[function(node=1)]),
            # L3 as NUMA, sub-NUMA clusters: the same socket
            snapshot(far(12), pci=[function(node=1)]),
            snapshot(far(11), pci=[function(node=1)]),
            # of offline CPUs no node is known
            snapshot(host("0-7", possible="0-9"), guests=[guest(pins=("8", "9"))]),
            # memory only: the nearest CPUs are those of node 0
            snapshot(memory_only(80, 120), pci=[function(node=2)]),
            snapshot(memory_only(120, 80), pci=[function(node=2)], guests=[guest(pins=("4",))]),
        ),
    ),
    "device-without-node": Case(
        snapshot(pci=[function(node=-1)]),
        f"vm {NIC}",
        "its NUMA node is not known to the firmware",
        (snapshot(), snapshot(pci=[function(node=None)]), snapshot(ONE_NODE, [function(node=-1)])),
    ),
    "device-unclaimed": Case(
        snapshot(unclaimed={GPU: 2}),
        str(GPU),
        "2 interrupts of VFIO's, and no guest that has it",
        (snapshot(), snapshot(pci=BOTH, guests=[guest(devices=[NIC, GPU])])),
    ),
    "irqbalance-running": Case(
        snapshot(irqbalance=IRQBALANCE),
        "host",
        "irqbalance (pid 812) may undo pins",
        (
            snapshot(),
            snapshot(irqbalance=Irqbalance(running=False)),
            snapshot(irqbalance=IRQBALANCE, guests=[]),
            asked("native", irqbalance=IRQBALANCE),
        ),
    ),
    "interrupts-posted": Case(
        snapshot(posting=POSTING),
        "host",
        "device interrupts may be posted: AVIC is on",
        (snapshot(), snapshot(posting=Posting(active=False, basis="AVIC is off"))),
    ),
    "device-not-pci": Case(
        snapshot(not_pci={"fff51000.ethernet": [40, 41, 44, 45]}),
        "fff51000.ethernet",
        "4 interrupts of VFIO's (40, 41, 44, ...), and it is no PCI function",
        (snapshot(),),
    ),
    "target-offline": Case(
        asked("20-30", interrupts=[msix(40, 0)]),
        f"vm {NIC}",
        "CPUs 20-30 are not online: left alone",
        (
            asked("2-3"),
            asked("auto"),
            # Somebody else decides, so nobody is asked for these CPUs.
            snapshot(guests=[guest("a"), guest("b", directive=Directive.parse("2-9"))]),
        ),
    ),
    "isolated-conflict": Case(
        asked("2-4", topology=host(isolated="3", nohz_full="4-5")),
        f"vm {NIC}",
        "its interrupts may go to isolated CPUs 3-4, not its vCPUs'",
        (
            asked("2-4"),
            asked("0-2", topology=host(isolated="3")),
            snapshot(host(isolated="0-1", nohz_full="0-1")),
            snapshot(host(isolated="2-3"), guests=[UNPINNED]),
            snapshot(host(nohz_full="1-3"), guests=[UNPINNED]),
            snapshot(
                host(isolated="3"), guests=[guest(pins=("2", "0-7"))], pci=[function(node=-1)]
            ),
            asked("native", topology=host(isolated="3")),
            # the emulator's own
            snapshot(
                host(isolated="0-1,3"),
                guests=[guest(directive=Directive.parse("emulator"), emulator=cpus("3"))],
            ),
        ),
    ),
    "pool-on-isolated": Case(
        snapshot(host(isolated="0-3"), guests=[guest(pins=("0-3",) * 4)]),
        "vm",
        "4 vCPUs share isolated CPUs 0-3 as one pool, among which the kernel does not balance: all"
        " stay where they started",
        (
            snapshot(host(isolated="4-7"), guests=[guest(pins=("0-3",) * 4)]),
            snapshot(host(nohz_full="0-3"), guests=[guest(pins=("0-3",) * 4)]),
            snapshot(host(isolated="0-3"), guests=[guest(pins=("0", "1", "2", "3"))]),
            snapshot(host(isolated="0-3"), guests=[guest(pins=("0-1", "2-3"))]),
            snapshot(host(isolated="3"), guests=[guest(pins=("0-3",) * 4)]),
        ),
    ),
    "pinned-conflict": Case(
        snapshot(guests=[UNPINNED, guest("other", pins=("2", "4"), devices=())]),
        f"vm {NIC}",
        "its interrupts may go to CPUs 2, to which other guests' vCPUs are pinned",
        (
            snapshot(guests=[UNPINNED, guest("other", pins=("4", "5"), devices=())]),
            snapshot(guests=[UNPINNED, guest("other", pins=(None, None), devices=())]),
            snapshot(guests=[guest(), guest("other", pins=("0", "1"), devices=())]),
            snapshot(guests=[guest(directive=Directive.parse("local")), guest("o", ("2",), ())]),
            # pools are nobody's own
            snapshot(guests=[UNPINNED, guest("other", pins=("1-3", "1-3"), devices=())]),
            snapshot(
                guests=[UNPINNED, *(guest(each, ("2-3", "2-3"), devices=()) for each in "ab")]
            ),
        ),
    ),
    "vectors-low": Case(
        snapshot(vectors_on={0: VECTORS_LOW, 1: VECTORS_LOW + 7, 7: 199}),
        "CPU 0-1",
        "up to 187 of about 200 vectors are in use on target CPUs 0-1",
        (
            snapshot(),
            snapshot(vectors_on={0: VECTORS_LOW - 1, 7: 199}),
            asked("native", vectors_on={0: 200}),
        ),
    ),
    "intx-shared": Case(
        snapshot(guests=[guest(), guest("z", devices=[GPU])], **SHARED_BY_TWO),  # type: ignore[arg-type]
        f"vm {NIC}",
        f"IRQ 16: the line is shared with vfio-intx({GPU})",
        (
            snapshot(interrupts=[intx(16)]),
            snapshot(guests=[guest(devices=[NIC, GPU])], **MINE),  # type: ignore[arg-type]
            snapshot(guests=[guest(directive=NATIVE)], interrupts=[intx(16, NIC, "ahci")]),
        ),
    ),
    "wrong-cpu": Case(
        snapshot(interrupts=[msix(40, 0, on="3"), msix(41, 1, at="1", on="1")]),
        f"vm {NIC}",
        "1 of 2 interrupts are delivered to another CPU than planned",
        (
            snapshot(interrupts=[msix(40, 0, at="0", on="0")]),
            snapshot(interrupts=[msix(40, 0, at="0", on="3")]),
            snapshot(interrupts=[msix(40, 0, on="0")]),
            snapshot(interrupts=[msix(40, 0, on="3", settable=False)]),
            asked("native", interrupts=[msix(40, 0, on="3")]),
        ),
    ),
    "wrong-node": Case(
        snapshot(interrupts=[msix(40, 0, on="7"), msix(41, 1, on="6"), msix(42, 2, on="3")]),
        f"vm {NIC}",
        "2 of 3 interrupts are delivered on another node than planned",
        (
            snapshot(interrupts=[msix(40, 0, on="3")]),
            snapshot(interrupts=[msix(40, 0, on="7")], pci=[function(node=-1)]),
            snapshot(interrupts=[msix(40, 0, on="7")], guests=[guest(pins=("4",))]),
            snapshot(interrupts=[msix(40, 0, on="3")], guests=[guest(pins=("4",))]),
        ),
    ),
    "place-unknown": Case(
        snapshot(interrupts=[msix(40, 0, at=None, on=None), msix(41, 1, at="1", on="1")]),
        f"vm {NIC}",
        "1 of 2 interrupts are at places that could not be read",
        (snapshot(interrupts=[msix(40, 0, at="0", on="0")]),),
    ),
    "affinity-loose": Case(
        snapshot(interrupts=[msix(40, 0, on="0")]),
        f"vm {NIC}",
        "1 of 1 interrupts are well placed, but not pinned as planned",
        (
            snapshot(interrupts=[msix(40, 0, at="0", on="0")]),
            snapshot(interrupts=[msix(40, 0, on="1")]),
        ),
    ),
    "device-missing": Case(
        snapshot(pci=[]), f"vm {NIC}", "the host has no such device", (snapshot(),)
    ),
    "device-claimed-twice": Case(
        snapshot(guests=[guest("b"), guest("a")], interrupts=[msix(40, 0, at="0", on="0")]),
        f"b {NIC}",
        "a has this device too and decides",
        (snapshot(), snapshot(pci=BOTH, guests=[guest("a"), guest("b", devices=[GPU])])),
    ),
    "setting-not-understood": Case(
        snapshot(guests=[guest(problems=("cpuset='x' of alias net0: not a CPU list",))]),
        "vm",
        "cpuset='x' of alias net0: not a CPU list",
        (snapshot(),),
    ),
}


DAEMONS = {
    "affinity-contested": (
        contested(
            "vm", InterruptKey(NIC, f"vfio-msix[0]({NIC})"), Contention(by=Counter(sh=3), wait=20)
        ),
        f"vm {NIC}",
        f"vfio-msix[0]({NIC}) was moved 3 times by others, most often by sh;"
        " it is put back 20 seconds after each move",
    ),
    "irqbalance-untold": (
        irqbalance_untold(7, "it does not answer"),
        "host",
        "irqbalance (pid 7) was not told: it does not answer",
    ),
    "guest-left-alone": (left_alone("vm"), "vm", "its interrupts are left alone for a while"),
    "rule-unmatched": (
        next(rules_unmatched([Rule(NATIVE, origin="rule 2 of x.toml")])),
        "host",
        "rule 2 of x.toml fits no device of a guest",
    ),
    "guests-not-read": (guests_not_read("no socket"), "host", "no socket"),
    "journal-unusable": (journal_unusable("line 1 is malformed"), "host", "line 1 is malformed"),
    "libvirt-silent": (libvirt_silent("no answer"), "host", "no answer"),
    "events-polled": (events_polled("locked"), "host", "no events of the kernel: locked"),
    "vectors-followed": (
        followed("vm", "a peek", ["BPF: no bpftrace"]),
        "vm",
        "where it aims its vectors is read by a peek; BPF: no bpftrace",
    ),
    "vectors-not-followed": (
        not_followed(f"vm {NIC}", ["BPF: no bpftrace", "a peek: not q35"]),
        f"vm {NIC}",
        "where it aims its vectors cannot be read: BPF: no bpftrace; a peek: not q35",
    ),
}
"""What only a daemon can tell: the finding, its subject and message."""


def test_whose_name_irqbalance_does_not_know() -> None:
    """``--banmod=vfio-pci`` and a variant driver: the underscore makes it another name."""

    def told(driver: str, *banned: str, vfio_device: bool = False) -> list[str]:
        them = [function(driver=driver, vfio_device=vfio_device)]
        state = snapshot(pci=them, irqbalance=Irqbalance(True, 812, banned=banned))
        made = findings(state, plan(state, Config()))
        return [each.message for each in made if each.code == "irqbalance-running"]

    assert told("vfio-pci", "vfio-pci") == []
    assert told("mlx5_vfio_pci", "vfio") == []
    assert told("mlx5_vfio_pci", "vfio-pci") == [
        "irqbalance (pid 812) may undo pins of mlx5_vfio_pci, whose name has none of vfio-pci"
        " (--banmod=) in it"
    ]
    assert len(told("nvidia", "vfio", vfio_device=True)) == 1
    assert told("nvidia", "nvidia", vfio_device=True) == []
    assert told("nvidia", "vfio") == []  # the host's still; the guest starts with vfio-pci


def test_every_code_has_a_case() -> None:
    assert CASES.keys() | DAEMONS.keys() | stakes.CODES == ADVICE.keys()


@pytest.mark.parametrize("code", DAEMONS)
def test_of_a_daemon(code: str) -> None:
    finding, subject, message = DAEMONS[code]
    assert (finding.code, finding.subject, finding.message) == (code, subject, message)
    assert (finding.severity, finding.hint) == (ADVICE[code].severity, ADVICE[code].remedy)


@pytest.mark.parametrize("code", CASES)
def test_due(code: str) -> None:
    case = CASES[code]
    them = [each for each in found(case.due) if each.code == code]
    assert (them[0].subject, them[0].message) == (case.subject, case.message)
    assert {(each.severity, each.hint) for each in them} == {
        (ADVICE[code].severity, ADVICE[code].remedy.replace("GUEST", "vm"))
    }


@pytest.mark.parametrize(
    ("code", "number"),
    [(code, number) for code, case in CASES.items() for number in range(len(case.not_due))],
)
def test_not_due(code: str, number: int) -> None:
    assert code not in {each.code for each in found(CASES[code].not_due[number])}


def test_nothing_is_wrong_with_a_host_in_order() -> None:
    assert found(snapshot(interrupts=[msix(40, 0, at="0", on="0")])) == ()
    assert found(snapshot(guests=[], pci=[])) == ()
    assert found(snapshot(guests=[], irqbalance=IRQBALANCE, vectors_on={0: 200})) == ()


def test_applying_leaves_no_finding_that_tells_to_apply() -> None:
    state = snapshot(interrupts=[msix(40, 0, on="3"), msix(41, 1, on="7"), msix(42, 2, on="0")])
    assert {each.code for each in found(state)} == {"wrong-cpu", "wrong-node", "affinity-loose"}
    assert found(carried_out(state, plan(state, Config()))) == ()


def test_target_offline_in_part_and_for_words() -> None:
    (one,) = found(asked("2-3,9"))
    assert one.message == "CPUs 9 of its CPU list are not online"
    (one,) = found(snapshot(host("2-7"), guests=[guest(pins=("0",))], pci=[function(node=-1)]))[:1]
    assert (one.code, one.message) == (
        "target-offline",
        "the vCPUs' CPUs 0 are offline; no interrupts yet",
    )
    gone = guest(emulator=cpus("9"), directive=Directive.parse("emulator"))
    (one,) = found(snapshot(guests=[gone]))
    assert (one.code, one.message) == (
        "target-offline",
        "the emulator's CPUs 9 are offline; no interrupts yet",
    )


def test_a_line_asked_for_in_two_ways() -> None:
    devices = [GuestDevice(NIC, "hostdev"), GuestDevice(GPU, "hostdev", directive=EXPLICIT)]
    them = found(snapshot(guests=[guest(devices=devices)], **MINE))  # type: ignore[arg-type]
    assert [(each.code, each.subject) for each in them] == [("intx-shared", f"vm {GPU}")]


def test_each_problem_of_a_guest_is_told_in_its_order() -> None:
    them = found(snapshot(guests=[guest(problems=("b", "a"))]))
    assert [each.message for each in them] == ["b", "a"]


def test_a_missing_device_is_all_there_is_to_say_of_it() -> None:
    two = [guest("a", directive=Directive.parse("2,99")), guest("b")]
    them = found(snapshot(pci=[], guests=two))
    assert [(each.code, each.subject) for each in them] == [
        ("device-missing", f"a {NIC}"),
        ("device-missing", f"b {NIC}"),
    ]


def test_some_vcpus_are_not_pinned() -> None:
    (one,) = found(snapshot(guests=[guest(pins=(None, "0"))]))
    assert (one.code, one.message) == (
        "vcpus-not-pinned",
        "1 of its 2 vCPUs may run on every CPU",
    )


def test_irqbalance_without_a_pid() -> None:
    (one,) = found(snapshot(irqbalance=Irqbalance(running=True)))
    assert one.message == "irqbalance may undo pins"


def test_the_worst_come_first_then_by_code_and_subject() -> None:
    guests = [
        guest("z", pins=(None,)),
        guest("a", pins=(None,), devices=[GPU]),
        guest("m", devices=[USB]),
    ]
    nodeless = [function(each, -1) for each in (NIC, GPU)]
    them = found(snapshot(guests=guests, pci=nodeless, posting=POSTING))
    assert [(each.severity.value, each.code, each.subject) for each in them] == [
        ("warning", "device-missing", f"m {USB}"),
        ("warning", "vcpus-not-pinned", "a"),
        ("warning", "vcpus-not-pinned", "z"),
        ("note", "device-without-node", f"a {GPU}"),
        ("note", "device-without-node", f"z {NIC}"),
        ("note", "interrupts-posted", "host"),
    ]


@settings(max_examples=120, deadline=None)
@given(
    snapshots(),
    configs(),
    st.sampled_from([IRQBALANCE, Irqbalance(None)]),
    st.sampled_from([POSTING, Posting(None, "?")]),
    st.dictionaries(st.integers(0, 130), st.integers(0, 210), max_size=5),
)
def test_findings_of_every_host(
    state: Snapshot,
    config: Config,
    irqbalance: Irqbalance,
    posting: Posting,
    load: dict[int, int],
) -> None:
    made = plan(state, config)
    state = snapshot(
        state.topology,
        state.pci.values(),
        state.interrupts,
        state.guests,
        irqbalance=irqbalance,
        posting=posting,
        vectors_on=load,
    )
    them = findings(state, made)
    assert len(set(them)) == len(them)
    subjects = {each.name for each in state.guests} | {
        f"{each.name} {device.address}" for each in state.guests for device in each.devices
    }
    for each in them:
        assert each.severity is ADVICE[each.code].severity
        remedy = ADVICE[each.code].remedy
        names = {remedy.replace("GUEST", shlex.quote(guest.name)) for guest in state.guests}
        assert each.hint in names | {remedy, ADVICE[each.code].no_room or remedy}
        assert "GUEST" not in each.hint
        assert each.message.isprintable()
        assert each.subject in subjects | {"host"} or each.subject.startswith("CPU ")
    ranks = [each.severity.rank for each in them]
    assert ranks == sorted(ranks, reverse=True)
    assert set(ranks) <= {Severity.WARNING.rank, Severity.NOTE.rank}
