"""The kernel's lines about interrupts: real ones, hostile ones, and what ends what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.host.events import (
    ENDS,
    EventKind,
    KernelEvent,
    Pairing,
    lasting,
    parse,
    vectors,
)

HEAD = "           <...>-1234    [002]   123.456789: "
BY_SHELL = {"comm": "sh", "pid": 1234}

# As Linux 6.1 (arch/x86 kprobes and kretprobes, include/trace/events/{sched,irq}.h) prints them.
REAL = [
    (
        f"{HEAD}requested: (request_threaded_irq+0x0/0x1a0) irq=45"
        ' name="vfio-msix[0](0000:01:00.0)"',
        KernelEvent(EventKind.REQUESTED, 123.456789, 45, "vfio-msix[0](0000:01:00.0)", pid=1234),
    ),
    (
        f"{HEAD}in_place: (vfio_msi_set_vector_signal+0x1b3/0x2e0 [vfio_pci_core]"
        " <- request_threaded_irq)",
        KernelEvent(EventKind.IN_PLACE, 123.456789, pid=1234),
    ),
    (
        f"{HEAD}freed: (free_irq+0x0/0x3b0) irq=45",
        KernelEvent(EventKind.FREED, 123.456789, 45, pid=1234),
    ),
    (
        f'{HEAD}moved: (irq_set_affinity+0x0/0x80) irq=45 by="irqbalance"',
        KernelEvent(EventKind.MOVED, 123.456789, 45, comm="irqbalance", pid=1234),
    ),
    (
        f"{HEAD}settled: (write_irq_affinity.isra.0+0xd4/0x120 <- irq_set_affinity)",
        KernelEvent(EventKind.SETTLED, 123.456789, pid=1234),
    ),
    (
        f'{HEAD}repinned: (sched_setaffinity+0x0/0x250) tid=4711 by="taskset"',
        KernelEvent(EventKind.REPINNED, 123.456789, tid=4711, comm="taskset", pid=1234),
    ),
    (  # a thread that has pinned itself, by a kernel before 6.6
        f'{HEAD}repinned: (sched_setaffinity+0x0/0x250) tid=0 by="lcore-worker-1"',
        KernelEvent(EventKind.REPINNED, 123.456789, tid=1234, comm="lcore-worker-1", pid=1234),
    ),
    (
        f"{HEAD}confined: (cgroup_file_write+0x89/0x1c0 <- cpuset_write_resmask)",
        KernelEvent(EventKind.CONFINED, 123.456789, pid=1234),
    ),
    (  # a thread may call itself anything
        f"{HEAD}sched_process_exit: comm=x pid=5 prio=1 pid=1234 prio=120 group_dead=false",
        KernelEvent(EventKind.ENDED, 123.456789, pid=1234),
    ),
    (
        f"{HEAD}vector_alloc: irq=45 vector=36 reserved=1 ret=0",
        KernelEvent(EventKind.ALLOCATED, 123.456789, 45, pid=1234),
    ),
    (
        f"{HEAD}vector_teardown: irq=45 is_managed=0 has_reserved=0",
        KernelEvent(EventKind.TORN_DOWN, 123.456789, 45, pid=1234),
    ),
    (
        f"{HEAD}sched_process_exec: filename=/usr/sbin/irqbalance pid=1234 old_pid=1234",
        KernelEvent(EventKind.STARTED, 123.456789, name="/usr/sbin/irqbalance", pid=1234),
    ),
    # A name that is recorded, a task id of seven digits, a long uptime, many CPUs.
    (
        " qemu-system-x86-4194304 [8191] 98765432.000001: freed:"
        " (free_irq+0x0/0x3b0) irq=999999999",
        KernelEvent(EventKind.FREED, 98765432.000001, 999999999, pid=4194304),
    ),
    (
        "          <idle>-0       [000]     0.000001: freed: (free_irq+0x0/0x3b0) irq=0",
        KernelEvent(EventKind.FREED, 0.000001, 0, pid=0),
    ),
    # A task whose own name poses as the rest of a line.
    (
        "x-1 [0] 1.0: fre-77      [001]     5.000000: freed: (free_irq+0x0/0x3b0) irq=45",
        KernelEvent(EventKind.FREED, 5.0, 45, pid=77),
    ),
]

NOTHING = [
    "CPU:2 [LOST 7 EVENTS]",
    "CPU:2 [LOST EVENTS]",
    "",
    "# tracer: nop",
    HEAD,
    f"{HEAD}freed:",
    f"{HEAD}freed: ",
    f"{HEAD}freed: (free_irq+0x0/0x3b0)",
    f"{HEAD}freed: (free_irq+0x0/0x3b0) irq=",
    f"{HEAD}freed: (free_irq+0x0/0x3b0) irq=-1",
    f"{HEAD}freed: (free_irq+0x0/0x3b0) irq=0x2d",
    f"{HEAD}freed: (free_irq+0x0/0x3b0) irq=4294967295",
    f"{HEAD}freed: (fault)",
    f"{HEAD}freed: (free_irq+0x0/0x3b0) softirq=45",
    f"{HEAD}FREED: irq=45",
    f"{HEAD}unfreed: irq=45",
    f"{HEAD}softirq_raise: vec=3 [action=NET_RX]",
    f"{HEAD}repinned: (sched_setaffinity+0x0/0x250)",
    # With a note of irqs-off and preemption, as without options/irq-info=0.
    "           <...>-1234    [002] d..1.   123.456789: freed: (free_irq+0x0/0x3b0) irq=45",
    # One column off.
    "          <...>-1234    [002]   123.456789: freed: (free_irq+0x0/0x3b0) irq=45",
    "            <...>-1234    [002]   123.456789: freed: (free_irq+0x0/0x3b0) irq=45",
    # Digits, but not ASCII.
    f"{HEAD}freed: (free_irq+0x0/0x3b0) irq=\u0664\u0665",
]


@pytest.mark.parametrize(("line", "event"), REAL, ids=[line[45:60] for line, _ in REAL])
def test_lines_of_a_kernel(line: str, event: KernelEvent) -> None:
    assert parse(line.encode()) == event


@pytest.mark.parametrize("line", NOTHING)
def test_lines_that_tell_of_nothing(line: str) -> None:
    assert parse(line.encode()) is None


@pytest.mark.parametrize("line", [line for line, _ in REAL])
def test_a_line_that_is_cut_short_tells_of_nothing_else(line: str) -> None:
    """The kernel cuts at a page; a line feed in a name cuts anywhere."""
    whole = parse(line.encode())
    assert whole is not None
    for length in range(len(line)):
        part = parse(line[:length].encode())
        assert part is None or (part.kind, part.pid, part.at) == (whole.kind, whole.pid, whole.at)
        second = parse(line[length + 1 :].encode())
        assert second is None


def moved_by(comm: bytes, irq: int = 45) -> bytes:
    return HEAD.encode() + b'moved: (irq_set_affinity+0x0/0x80) irq=%d by="%s"' % (irq, comm)


@pytest.mark.parametrize(
    ("comm", "told"),
    [
        (b"sh", "sh"),
        (b"", ""),
        (b'"', '"'),
        (b'a" by="b', 'a" by="b'),
        (b"x irq=7", "x irq=7"),
        (b' name="vfio', ' name="vfio'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("k\u00e4se\u202e".encode(), "k\u00e4se\u202e"),
        (b"\0\x1b[2J", "\0\x1b[2J"),
        (b"tab\there", "tab\there"),
    ],
)
def test_a_task_may_call_itself_anything(comm: bytes, told: str) -> None:
    event = parse(moved_by(comm))
    assert event == KernelEvent(EventKind.MOVED, 123.456789, 45, comm=told, pid=1234)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"vfio-intx(0000:01:00.0)", "vfio-intx(0000:01:00.0)"),
        (b"x irq=7", "x irq=7"),
        (b'q"uo"te', 'q"uo"te'),
        (b"n" * 400, "n" * 300),
        (b"\xc3" * 400, "\ufffd" * 300),
        (b"", ""),
        (b"two\nlines", "two\nlines"),
    ],
)
def test_an_action_may_be_called_anything(name: bytes, told: str) -> None:
    line = HEAD.encode() + b'requested: (f+0x0/0x1) irq=45 name="%s"' % name
    event = parse(line)
    assert event is not None
    assert (event.irq, event.name) == (45, told)


def test_a_name_that_could_not_be_read() -> None:
    """The kernel prints (fault) and no quotes (kernel/trace/trace_probe.c)."""
    event = parse(f"{HEAD}requested: (f+0x0/0x1) irq=45 name=(fault)".encode())
    assert event == KernelEvent(EventKind.REQUESTED, 123.456789, 45, pid=1234)


@pytest.mark.parametrize(
    "program",
    [
        b"/usr/sbin/irqbalance",
        b"/a b/irqbalance",
        b"/tmp/filename=x pid=1 old_pid=2/irqbalance",
        b"/tmp/irq=7/irqbalance",
        b"/\xff/irqbalance",
    ],
)
def test_a_program_may_be_anywhere(program: bytes) -> None:
    line = b"%ssched_process_exec: filename=%s pid=1234 old_pid=1234" % (HEAD.encode(), program)
    event = parse(line)
    assert event is not None
    assert (event.kind, event.irq) == (EventKind.STARTED, -1)
    assert event.name == program.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "line",
    [
        # Anyone may call sched_setaffinity(-1, …), and -1 is what the filter of no thread lets by.
        f'{HEAD}repinned: (sched_setaffinity+0x0/0x250) tid=-1 by="a tid=4711"',
        f'{HEAD}repinned: (sched_setaffinity+0x0/0x250) tid=-1 by="a irq=4711"',
        f'{HEAD}moved: (irq_set_affinity+0x0/0x80) irq=4294967295 by="a irq=45"',
    ],
)
def test_a_name_is_not_taken_for_a_number(line: str) -> None:
    event = parse(line.encode())
    assert event is None or (event.irq, event.tid) == (-1, -1)


@given(st.binary(max_size=400))
def test_whatever_is_read_is_no_error(line: bytes) -> None:
    parse(line)
    vectors(line)


@given(
    st.sampled_from([line.encode() for line, _ in REAL]),
    st.integers(0, 200),
    st.integers(0, 20),
    st.binary(max_size=20),
)
def test_whatever_becomes_of_a_line_is_no_error(
    line: bytes, start: int, length: int, put: bytes
) -> None:
    parse(line[:start] + put + line[start + length :])


def line_by_line(text: bytes) -> list[KernelEvent]:
    pairing = Pairing()
    events = filter(None, map(parse, text.split(b"\n")))
    return [done for event in events for done in pairing.done(event)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([77, 78]),
            st.sampled_from(["requested", "requested", "in_place", "in_place", "freed", "moved"]),
            st.sampled_from(["(request_threaded_irq+0x0/0x1a0) ", "", "(", "(a) (b) "]),
            st.sampled_from(["irq=45", "irq=46", "irq=45", "irq=", "irq=4567890123", "tid=45"]),
            st.sampled_from(
                [
                    ' name="vfio-msix[1](0000:01:00.0)"',
                    ' name="a" name="b"',
                    ' name="',
                    ' name=""',
                    "",
                ]
            ),
            st.sampled_from(["\n", "\n", "\n", "\n\n", ""]),
        ),
        max_size=6,
    )
)
def test_the_short_way_understands_what_the_long_one_does(
    told: list[tuple[int, str, str, str, str, str]],
) -> None:
    """Of what it does not, or not so, it leaves all to the other."""
    text = "".join(
        f"           <...>-{pid:<7} [001]   123.456789: {kind}: {where}{number}{name}{end}"
        for pid, kind, where, number, name, end in told
    ).encode()
    found, at = vectors(text)
    assert found == line_by_line(text[:at])
    assert text[:at].endswith(b"\n") or not at
    assert found + line_by_line(text[at:]) == line_by_line(text)


def test_the_commonest_events_take_the_short_way() -> None:
    common = (EventKind.REQUESTED, EventKind.IN_PLACE, EventKind.FREED)
    told = [(line, event.kind) for line, event in REAL if event.kind in common]
    assert {kind for _, kind in told} == set(common)
    whole = "".join(f"{line}\n" for line, _ in told).encode()
    found, at = vectors(whole * 3 + whole[:-1])
    done = [kind for _, kind in told if kind is not EventKind.IN_PLACE]
    assert [each.kind for each in found] == (done * 4)[:-1], "of the last, a piece is missing"
    assert at == 4 * len(whole) - len(told[-1][0]) - 1


@pytest.mark.parametrize("line", [f"{' ' * 16}-{'9' * 5000} [000] 1.0: freed: irq=45"])
def test_a_number_without_end_is_no_error(line: str) -> None:
    parse(line.encode())


COMMS = st.binary(max_size=15).filter(lambda comm: b"\n" not in comm)


@given(COMMS, st.integers(0, 999_999_999))
def test_no_name_changes_which_interrupt_is_meant(comm: bytes, irq: int) -> None:
    event = parse(moved_by(comm, irq))
    assert event is not None
    assert (event.irq, event.comm) == (irq, comm.decode("utf-8", "replace"))


@given(st.binary(max_size=15), st.integers(0, 999_999_999))
def test_no_name_makes_two_events_of_one(comm: bytes, irq: int) -> None:
    """Be it split at a line feed: then one half may be understood, and not as another interrupt."""
    events = [parse(line) for line in moved_by(comm, irq).split(b"\n")]
    told = [each for each in events if each is not None]
    assert [(each.kind, each.irq) for each in told] == [(EventKind.MOVED, irq)]
    assert (b"\n" in comm) == (None in events)


@given(st.binary(min_size=16, max_size=16).filter(lambda comm: b"\n" not in comm))
def test_no_name_in_front_changes_the_event(comm: bytes) -> None:
    event = parse(comm + moved_by(b"sh")[16:])
    assert event == KernelEvent(EventKind.MOVED, 123.456789, 45, comm="sh", pid=1234)


# Pairs ------------------------------------------------------------------------------------------


def event(kind: EventKind, pid: int = 1, at: float = 1.0, irq: int = 5) -> KernelEvent:
    return KernelEvent(kind, at, -1 if kind in ENDS else irq, pid=pid)


@pytest.mark.parametrize(("end", "start"), ENDS.items())
def test_what_is_announced_is_held_back_until_its_end(end: EventKind, start: EventKind) -> None:
    pairing = Pairing()
    announced = event(start)
    assert not pairing
    assert pairing.done(announced) == ()
    assert pairing
    assert pairing.done(event(end, pid=2)) == (), "the end of another task's"
    other = next(each for each in ENDS if each is not end)
    assert pairing.done(event(other)) == (), "the end of something else"
    assert pairing.done(event(end)) == (announced,)
    assert not pairing
    assert pairing.done(event(end)) == (), "once"


@pytest.mark.parametrize(
    "kind", [each for each in EventKind if each not in ENDS and each not in ENDS.values()]
)
def test_what_has_no_end_is_not_held_back(kind: EventKind) -> None:
    pairing = Pairing()
    assert pairing.done(event(kind)) == (event(kind),)
    assert not pairing


def test_an_end_that_was_missed() -> None:
    """The kernel follows so many returns at a time; the next announcement says it is over."""
    pairing = Pairing()
    first, second = event(EventKind.MOVED, irq=5), event(EventKind.MOVED, irq=6)
    assert pairing.done(first) == ()
    assert pairing.done(second) == (first,)
    assert pairing.done(event(EventKind.SETTLED)) == (second,)


def test_one_task_may_have_announced_one_of_each() -> None:
    pairing = Pairing()
    asked, moved = event(EventKind.REQUESTED), event(EventKind.MOVED)
    assert pairing.done(asked) == pairing.done(moved) == ()
    assert pairing.done(event(EventKind.IN_PLACE)) == (asked,)
    assert pairing.done(event(EventKind.SETTLED)) == (moved,)


def test_what_never_ends_is_given_in_the_end() -> None:
    pairing = Pairing()
    old = event(EventKind.MOVED, pid=1, at=1.0)
    young = event(EventKind.MOVED, pid=2, at=2.0)
    pairing.done(old)
    pairing.done(young)
    assert pairing.flush(1.0) == ()
    assert pairing.flush(2.0) == (old,)
    assert pairing.flush(2.0) == ()
    assert pairing
    assert pairing.flush() == (young,)
    assert not pairing
    assert pairing.done(event(EventKind.SETTLED, pid=1)) == ()


@given(
    st.lists(
        st.builds(
            event, st.sampled_from(EventKind), st.integers(1, 3), st.floats(0, 9), st.integers(0, 9)
        )
    )
)
def test_nothing_is_lost_and_nothing_told_twice(events: list[KernelEvent]) -> None:
    pairing = Pairing()
    told = [done for each in events for done in pairing.done(each)]
    told += pairing.flush()
    kept = [each for each in events if each.kind not in ENDS]
    assert sorted(map(repr, told)) == sorted(map(repr, kept))


def told(kind: EventKind, irq: int, action: str = "") -> KernelEvent:
    return KernelEvent(kind, 0.0, irq, action)


NAMES = [
    "vfio-msix[0](0000:01:00.0)",
    "vfio-msi[0](0000:02:00.0)",
    "vfio-intx(0000:03:00.0)",
    "eth0",
]


@pytest.mark.parametrize(("name", "kept"), [*zip(NAMES, [False, False, True, True], strict=True)])
def test_a_vector_that_is_given_up_again_is_not_acted_on(name: str, kept: bool) -> None:
    """Where several may be on a line, whoever lets go is not told."""
    request, free = told(EventKind.REQUESTED, 45, name), told(EventKind.FREED, 45)
    again = told(EventKind.REQUESTED, 45, name)
    assert lasting([request, free]) == ([request] if kept else []) + [free]
    assert lasting([request, free, again]) == ([request] if kept else []) + [free, again]


@given(
    st.lists(
        st.tuples(st.sampled_from(EventKind), st.sampled_from((44, 45)), st.sampled_from(NAMES))
    )
)
def test_only_requests_of_what_is_gone_by_the_end_do_not_last(
    made: list[tuple[EventKind, int, str]],
) -> None:
    events = [told(*each) for each in made]

    def lasts(at: int) -> bool:
        event = events[at]
        gone = any(e.kind is EventKind.FREED and e.irq == event.irq for e in events[at:])
        return not (gone and event.kind is EventKind.REQUESTED and event.name in NAMES[:2])

    assert lasting(events) == [event for at, event in enumerate(events) if lasts(at)]
