"""Pictures of hosts: well-formed, complete, readable, and safe whatever a guest is called."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given, settings

from tests.policy.facts import GPU, NIC, function, guest, host, msix, snapshot, snapshots
from tests.steps import steps
from tests.ui.pictured import two_sockets
from virtirq.cpuset import CpuSet, union
from virtirq.model import Plan, Snapshot
from virtirq.policy.config import Config
from virtirq.policy.plan import plan
from virtirq.ui import pages, picture, scene
from virtirq.ui.style import CHARACTER

SVG = "{http://www.w3.org/2000/svg}"
SMALL = two_sockets(4, 6, 4, hybrid=True)
LARGE = two_sockets(32, 40, 5)


def drawn(state: Snapshot, *, after: bool = False) -> Element:
    wanted = plan(state, Config())
    scenes = [scene.now(state, wanted), *([scene.planned(state, wanted)] if after else ())]
    made: Element = fromstring(picture.svg(scenes))
    return made


def found(root: Element, kind: str) -> list[Element]:
    """The elements of a class, but for samples that explain what it means."""
    return [each for each in root.iter() if kind in each.get("class", "").split()]


def vectors(root: Element, part: str) -> dict[str, str | None]:
    """Of each vector that has a line (``path``), or a mark (``circle``), its CPU by IRQ."""
    groups = [each for each in found(root, "vector") if each.get("data-irq")]
    return {
        str(each.get("data-irq")): each.get("data-cpu")
        for each in groups
        if any(
            child.tag in (f"{SVG}{part}", f"{SVG}polygon" if part == "circle" else "")
            for child in each
        )
    }


def titles(root: Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}title")]


def box(root: Element, name: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom."""
    (one,) = [each for each in root.iter() if each.get("id") == name]
    x, y, width, height = (float(one.get(each, "")) for each in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


@pytest.mark.parametrize("state", [SMALL, LARGE], ids=["2x8", "2x64"])
def test_every_part_is_there_under_the_name_that_lstopo_gives_it(state: Snapshot) -> None:
    root = drawn(state)
    cpus, cores = len(state.topology.online), len(state.topology.siblings)
    for kind, number in (("PU", cpus), ("Core", cores), ("L3", 4), ("NUMANode", 2), ("Package", 2)):
        boxes = [each for each in found(root, kind) if each.tag == f"{SVG}rect"]
        assert [each.get("id") for each in boxes] == [f"{kind}_{n}_rect" for n in range(number)]
    devices = [each for each in found(root, "PCI") if each.tag == f"{SVG}rect"]
    assert len(devices) == len(state.pci)


@pytest.mark.parametrize("state", [SMALL, LARGE], ids=["2x8", "2x64"])
def test_each_part_is_inside_of_what_it_is_part_of(state: Snapshot) -> None:
    root = drawn(state)
    within = {"PU": "Core", "Core": "NUMANode", "PCI": "NUMANode", "NUMANode": "Package"}
    boxes = {
        kind: [
            box(root, str(each.get("id"))) for each in found(root, kind) if each.tag == f"{SVG}rect"
        ]
        for kind in ("PU", "Core", "PCI", "NUMANode", "Package")
    }
    for inner, outer in within.items():
        for left, top, right, bottom in boxes[inner]:
            around = [
                each
                for each in boxes[outer]
                if each[0] <= left and each[1] <= top and each[2] >= right and each[3] >= bottom
            ]
            assert len(around) == 1, inner
    for kind in ("PU", "PCI"):
        for one in boxes[kind]:
            for other in boxes[kind]:
                apart = (
                    one[2] <= other[0]
                    or other[2] <= one[0]
                    or one[3] <= other[1]
                    or other[3] <= one[1]
                )
                assert one is other or apart


@pytest.mark.parametrize("state", [SMALL, LARGE], ids=["2x8", "2x64"])
def test_every_vector_has_its_line(state: Snapshot) -> None:
    root = drawn(state)
    there = {str(each.irq): str(each.effective) for each in state.interrupts}
    assert vectors(root, "path") == there
    assert set(vectors(root, "circle")) == set(there)


def test_a_line_ends_at_its_cpu() -> None:
    root = drawn(SMALL)
    boxes = {
        each.get("data-cpu"): box(root, str(rect.get("id")))
        for each in root.iter(f"{SVG}g")
        for rect in each.findall(f"{SVG}rect")
        if each.get("data-cpu")
    }
    lines = [each for each in found(root, "vector") if each.get("data-cpu")]
    assert len(lines) == len(SMALL.interrupts)
    for each in lines:
        path = each.find(f"{SVG}path")
        assert path is not None
        *_, x, y = map(float, re.findall(r"[\d.]+", path.get("d", "")))
        left, top, right, bottom = boxes[each.get("data-cpu")]
        assert left < x < right
        assert y in (top, bottom)


def verdicts(root: Element) -> Counter[str]:
    lines = [each for each in found(root, "vector") if each.get("data-cpu")]
    return Counter(str(each.get("class")).removeprefix("vector ") for each in lines)


def test_what_is_wrong_is_told_from_what_is_right() -> None:
    state = snapshot(
        pci=[function(NIC), function(GPU, None)],
        interrupts=[
            msix(1, 0, at="0", on="0"),
            msix(2, 1, at="0-7", on="5"),
            msix(3, 2, at="0-7", on="0"),
            msix(4, 3, at="0-7", on=None),
            msix(5, 0, GPU, at="3", on="3"),
        ],
        guests=[guest(devices=[NIC]), guest("other", [None], [GPU])],
    )
    assert verdicts(drawn(state)) == {"right": 1, "wrong": 1, "loose": 1, "left": 1}
    root = drawn(state)
    marks = {
        each.get("data-irq"): each
        for each in found(root, "vector")
        if each.get("id", "").endswith("_mark")
    }
    assert set(marks) == {"1", "2", "3", "4", "5"}
    assert "4" not in vectors(root, "path"), "where it goes is not known"
    # By their form too: not everybody sees the colour.
    assert [irq for irq, each in marks.items() if each.find(f"{SVG}polygon") is not None] == ["2"]


def test_a_crowd_of_wrong_ones_is_drawn_thinner() -> None:
    few, many = (
        snapshot(interrupts=[msix(1 + n, n, on="5") for n in range(number)])
        for number in (100, 101)
    )
    assert drawn(few).get("class") == "virtirq"
    assert drawn(many).get("class") == "virtirq crowded"


def test_after_the_plan_all_are_right() -> None:
    root = drawn(SMALL, after=True)
    before, after = (Counter() for _ in range(2))  # type: ignore[var-annotated]
    for each in found(root, "vector"):
        if each.get("data-cpu"):
            one = after if each.get("id", "").startswith("after") else before
            one[each.get("class")] += 1
    assert before["vector wrong"] > 0
    assert after == {"vector right": len(SMALL.interrupts)}
    names = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(names) == len(set(names))


def test_before_and_after_are_beside_each_other_where_there_is_room() -> None:
    def size(root: Element) -> tuple[float, float]:
        return float(root.get("width", "")), float(root.get("height", ""))

    (width, height), (both, high) = size(drawn(SMALL)), size(drawn(SMALL, after=True))
    assert (both, high) == (2 * width, height)
    (width, height), (both, high) = size(drawn(LARGE)), size(drawn(LARGE, after=True))
    assert both == width
    assert high > 1.9 * height


def test_pointing_at_a_part_tells_the_facts() -> None:
    told = titles(drawn(SMALL))
    text = "\n".join(told)
    for fact in (
        "NUMA node 1: CPUs 4-7,12-15\ndistances: 21 to node 0, 10 to node 1",
        "L3 of CPUs 0-1,8-9, 32 MiB",
        "Core of CPUs 0, 8, performance",
        "CPU 1, isolated",
        "vCPU 0 of router-00",
        "router-05, known from test\n4 vCPUs, not pinned",
        "auto (built-in default): CPUs ",
    ):
        assert fact in text
    each = {str(one.irq): one for one in SMALL.interrupts}
    for irq, one in each.items():
        (mine, *_) = [one for one in told if one.startswith(f"IRQ {irq}, msix ")]
        assert f"delivered to CPU {one.effective}, " in mine


HOSTILE = (
    "<script>alert(1)</script>",
    "]]></title></svg><img src=x onerror=alert(1)>",
    '" onload="alert(1)',
    "&lt;b&gt; &amp; &#x41;",
    "a\x00b\x1b[31mc\r\nd\x7f",
    "\u202egnp.exe \u2066 \ud800",
    "名前" * 200,
    "e\u0301" * 50,
    "",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_of_a_guest_gets_out_of_its_text(name: str) -> None:
    plain, hostile = (
        snapshot(guests=[guest(each)], interrupts=[msix(1, 0)], kernel=each[:9])
        for each in ("vm", name)
    )
    for after in (False, True):
        one, other = drawn(plain, after=after), drawn(hostile, after=after)
        shape = [(each.tag, sorted(each.keys())) for each in one.iter()]
        assert [(each.tag, sorted(each.keys())) for each in other.iter()] == shape
    page = pages.html(name, [picture.element([scene.now(hostile, plan(hostile, Config()))])])
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r"\son\w+=", re.sub(r">[^<]*<", "><", page))


def test_there_is_no_script_and_nothing_to_load() -> None:
    text = picture.svg([scene.now(SMALL, plan(SMALL, Config()))])
    page = pages.html("x", [picture.element([scene.now(SMALL, plan(SMALL, Config()))])])
    for each in (text, page):
        apart = each.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"<script|href|src=|url\(|@import|https?:|javascript:", apart)
    assert "default-src 'none'" in page


def test_a_host_without_anything() -> None:
    for state in (
        snapshot(guests=[], pci=[]),
        snapshot(host("0", []), guests=[]),
        snapshot(host("0-7", ["0-3"]), pci=[function(node=None)]),
        snapshot(host("0-3", ["0-3", ""]), pci=[function(node=1)], interrupts=[msix(1, 0)]),
    ):
        assert drawn(state).tag == f"{SVG}svg"
        assert scene.now(state, Plan()).counts["wrong"] == 0


def test_a_device_on_a_node_without_cpus_is_drawn_there() -> None:
    state = snapshot(host("0-3", ["0-3", ""]), pci=[function(node=1)], interrupts=[msix(1, 0)])
    bands = scene.now(state, plan(state, Config())).bands
    assert [(each.node, len(each.devices)) for each in bands] == [(0, 0), (1, 1)]


def test_a_node_of_two_sockets_is_drawn_in_each() -> None:
    state = snapshot(
        replace(host("0-7", ["0-7"]), packages=(CpuSet.parse("0-3"), CpuSet.parse("4-7")))
    )
    bands = scene.now(state, plan(state, Config())).bands
    assert [(each.package, each.node, each.cpus) for each in bands] == [
        (0, 0, (0, 1, 2, 3)),
        (1, 0, (4, 5, 6, 7)),
    ]
    assert [len(each.devices) for each in bands] == [1, 0]


@settings(max_examples=25)
@given(snapshots())
def test_on_any_host_every_cpu_and_every_vector_is_drawn_once(state: Snapshot) -> None:
    wanted = plan(state, Config())
    root: Element = fromstring(
        picture.svg([scene.now(state, wanted), scene.planned(state, wanted)])
    )
    names = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(names) == len(set(names))
    marks = [each for each in names if re.fullmatch(r"IRQ_\d+(_\d+)?_mark", str(each))]
    assert len(marks) == len(wanted.actions)
    cells = [
        str(each.get("data-cpu"))
        for each in root.iter(f"{SVG}g")
        if each.get("class") is None and each.get("data-cpu")
    ]
    assert sorted(cells) == sorted(2 * [str(cpu) for cpu in state.topology.online])
    lines = [each for each in names if re.fullmatch(r"IRQ_\d+(_\d+)?_line", str(each))]
    known = union(CpuSet(band.cpus) for band in scene.now(state, wanted).bands)
    assert known == state.topology.online
    landing = [
        vector
        for band in scene.now(state, wanted).bands
        for device in band.devices
        for vector in device.vectors
        if vector.cpu in known
    ]
    assert len(lines) == len(landing)


@pytest.mark.parametrize(
    ("text", "room", "kept"),
    [
        ("web", 3, "web"),
        ("webserver", 5, "webs…"),
        ("中中中中", 5, "中中…"),
        ("e\u0301e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301…"),
        ("webserver", 1, ""),
        ("webserver", 0, ""),
    ],
)
def test_what_there_is_no_room_for_is_cut(text: str, room: int, kept: str) -> None:
    assert picture._cut(text, (room + 0.5) * CHARACTER) == kept


def test_a_long_name_costs_what_it_is_long() -> None:
    def done(size: int) -> int:
        return steps(lambda: picture._cut("中" * size, 20.5 * CHARACTER))

    assert done(2000) < 2.2 * done(1000)


def test_of_more_than_a_thousand_those_that_are_alike_are_one_line() -> None:
    """A device's interrupts on one CPU; all are counted, and the wrong ones apart."""
    many = two_sockets(32, 40, 30)
    assert len(many.interrupts) == 1200
    made = scene.now(many, plan(many, Config()))
    assert sum(made.counts.values()) == 1200
    devices = [device for band in made.bands for device in band.devices]
    for device in devices:
        assert sum(each.number for each in device.vectors) == 30
        kinds = [(each.cpu, each.verdict) for each in device.vectors]
        assert len(set(kinds)) == len(kinds) < 30
        assert any(each.told.startswith(f"{each.number} interrupts of") for each in device.vectors)
    assert sum(sum(guest.counts.values()) for guest in made.guests) == 1200
    assert made.readable
    assert len(vectors(drawn(many), "circle")) == sum(len(each.vectors) for each in devices)
