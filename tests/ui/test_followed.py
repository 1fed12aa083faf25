"""What a person sees of guests whose vectors go where they aim them."""

from __future__ import annotations

from dataclasses import replace

from tests.ui.test_cli import DEMO
from virtirq.control import cycle, sources
from virtirq.model import Aimed, PciAddress, Plan, Snapshot
from virtirq.policy.config import Config
from virtirq.policy.plan import plan
from virtirq.ui import report, screens
from virtirq.ui.verbs import explain

DISK = PciAddress.parse("0000:42:00.0")


def followed() -> tuple[Snapshot, Plan]:
    """The recorded host, where `web` has been read."""
    fs = sources.open_fs(DEMO)
    guests = sources.find_guests(fs, [], None).guests
    (web,) = (each for each in guests if each.name == "web")
    aimed = {DISK: {0: Aimed(3), 1: Aimed(1), 2: Aimed(None, "it is for any of 4 vCPUs")}}
    snapshot = replace(
        cycle.observe(fs, guests), aimed=aimed, readers={web.key: "libvirt's memory peek"}
    )
    return snapshot, plan(snapshot, Config())


def lines_of(text: str, first: str, count: int) -> list[str]:
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if first in line)
    return [line.rstrip() for line in lines[at : at + count]]


def test_status_has_the_vcpu_that_the_guest_has_chosen() -> None:
    snapshot, planned = followed()
    text = screens.status_screen(snapshot, planned, (), None, short=False).plain()
    assert lines_of(text, "web  4 vCPUs", 9) == [
        "web  4 vCPUs on CPUs 4-7 (node 1)",
        "  where it aims its vectors is read by libvirt's memory peek",
        "  0000:42:00.0  nvme, node 1",
        "    auto (built-in default): CPUs 4-7 of its vCPUs",
        "    VECTOR  IRQ  VCPU  AFFINITY  ON  SHOULD BE  VERDICT",
        "    msix 0   60  3     4-7       6   7          wrong-cpu",
        "    msix 1   61  1     4-7       7   5          wrong-cpu",
        "    msix 2   62  -     4-7       4   6          wrong-cpu",
        "    msix 3   63  -     4-7       5   7          wrong-cpu",
    ]
    assert text.count("VCPU") == 1, "others have chosen nothing that is known"


def test_plan_says_whose_choice_it_is() -> None:
    snapshot, planned = followed()
    text = screens.plan_screen(snapshot, planned).plain()
    assert lines_of(text, "web 0000:42:00.0", 5)[2:] == [
        f"  pin  msix {vector}   {60 + vector}  4-7     {after}      to CPU {after} of {why}"
        for vector, after, why in (
            (0, 7, "vCPU 3, where the guest aims it, from CPU 6"),
            (1, 5, "vCPU 1, where the guest aims it, from CPU 7"),
            (2, 6, "vCPU 2 (it is for any of 4 vCPUs), from CPU 4"),
        )
    ]


def test_explain_says_so_too() -> None:
    snapshot, planned = followed()
    text = explain.of_object("60", snapshot, planned, ()).document.plain()
    assert "should be on CPU 7: to CPU 7 of vCPU 3, where the guest aims it, from CPU 6" in text
    assert "where it aims its vectors is read by libvirt's memory peek" in text


def test_json_has_it_as_data() -> None:
    snapshot, planned = followed()
    data = report.as_json(snapshot, planned, ())
    (web,) = (each for each in data["guests"] if each["name"] == "web")
    rows = {each["vector"]: each for each in web["devices"][0]["interrupts"]}
    assert [(rows[n]["vcpu"], rows[n]["vcpu_from"]) for n in (0, 1, 2)] == [
        (3, "guest"),
        (1, "guest"),
        (2, "spread"),
    ]
    assert web["vectors_read_by"] == "libvirt's memory peek"
    others = [each["vectors_read_by"] for each in data["guests"] if each["name"] != "web"]
    assert set(others) == {None}
