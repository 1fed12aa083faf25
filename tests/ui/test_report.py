"""``virtirq report``: what is on the page, and what is not where the guests' names are left out."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from tests.hostmaker import MadeHost, passthrough
from tests.policy.facts import NIC, aims, configs, guest, msix, snapshot, snapshots
from virtirq.control.daemon_status import DaemonStatus
from virtirq.control.log_entry import LogEntry
from virtirq.model import NATIVE, Finding, Gap, Severity, Snapshot
from virtirq.policy.config import Config, Rule
from virtirq.policy.directives import unmatched
from virtirq.policy.findings import findings, rules_unmatched
from virtirq.policy.plan import plan
from virtirq.ui import pages
from virtirq.ui.anonymous import anonymous
from virtirq.ui.cli import main
from virtirq.ui.events import journald
from virtirq.ui.inputs import View
from virtirq.ui.report_page import Measured, body

DEMO = str(REPOSITORY / "src/virtirq/demo/two-node.tar.xz")
_VOID = {"meta"}


class Page(HTMLParser):
    """Text, classes and elements of a page; fails where what is opened is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.opened: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in _VOID:
            self.opened.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.opened and self.opened[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def report(to: Path, *words: str) -> tuple[str, Page]:
    file = to / "report.html"
    assert main([*words, "report", "-q", "-o", str(file)]) == 0
    text = file.read_text()
    return text, Page(text)


def test_the_page_has_all_that_there_is_to_see(tmp_path: Path) -> None:
    text, page = report(tmp_path, "-s", DEMO)
    rows = {row[0]: row for row in page.rows if row}
    assert rows["kernel"][1].startswith("6.12")
    assert rows["CPUs online"][1] == "8: 0-7"
    assert rows["virtirq"]
    assert ["warning", "node-mismatch", "db 0000:41:00.0"] in [row[:3] for row in page.rows]
    vectors = [row for row in page.rows if re.match(r"msix \d|intx", row[0])]
    assert len(vectors) == 19
    assert all(len(row) == 8 and row[7].isdigit() for row in vectors)
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "object"})
    assert "default-src 'none'" in text
    for name in ("build", "db", "web"):
        assert any(each.startswith(f"{name}: ") for each in page.text)


def test_of_some_guests(tmp_path: Path) -> None:
    file = tmp_path / "web.html"
    assert main(["-s", DEMO, "report", "web", "-o", str(file)]) == 0
    text = file.read_text()
    assert "web: " in text
    assert "db: " not in text


def test_rates_are_of_interrupts_that_stayed_what_they_are(tmp_path: Path) -> None:
    before = snapshot(interrupts=[msix(n, n - 1, counts={0: 10, 3: 5}) for n in (1, 2, 3)])
    one, two, three = before.interrupts
    after = replace(
        before,
        interrupts=(
            replace(one, counts={0: 10, 3: 45}),
            replace(two, counts={0: 2}),  # set up anew
            replace(three, irq=4),
        ),
    )
    measured = Measured.between(before, after, 2.0)
    assert measured.rates == {(1, one.key): 20.0}
    file = tmp_path / "rates.html"
    assert main(["-s", DEMO, "report", "-q", "--rates", "0.1", "-o", str(file)]) == 0
    assert "per second, over 0." in file.read_text()


SECRET = "kunde-4711"
SECRETS = (SECRET, "5f1c2a04-2f6e-4a52-9d6f-0c8f6f6f7aaa", "52:54:00:aa:bb:cc", "ua-geheim")


def secret_host(to: Path) -> Path:
    domain = (
        f"<domain type='kvm'><name>{SECRET}</name><uuid>{SECRETS[1]}</uuid><vcpu>2</vcpu>"
        "<cputune><vcpupin vcpu='0' cpuset='4'/></cputune><devices><interface type='hostdev'>"
        f"<mac address='{SECRETS[2]}'/><alias name='{SECRETS[3]}'/>"
        "<source><address type='pci' domain='0' bus='0x82' slot='0' function='0'/></source>"
        "</interface></devices></domain>"
    )
    host = MadeHost(devices=(passthrough("0000:82:00.0", vectors=2),), domains={SECRET: domain})
    return host.write(to / f"host-of-{SECRET}")


def test_no_name_is_on_a_page_for_strangers(tmp_path: Path) -> None:
    root = secret_host(tmp_path)
    config = tmp_path / "virtirq.toml"
    config.write_text('[[rule]]\nguest = "kunde-*"\ndirective = "5"\n')
    words = ("-s", str(root), "--config", str(config), "report", "--redact", "-q")
    assert main([*words, "-o", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "guest-1" in text
    assert "5 (rule 1 of the configuration)" in text, "the rule still fits"
    for secret in (*SECRETS, str(tmp_path)):
        assert secret not in text


def test_names_are_there_unless_that_is_asked(tmp_path: Path) -> None:
    text, _ = report(tmp_path, "-s", str(secret_host(tmp_path)))
    assert SECRET in text


def view(state: Snapshot, config: Config) -> View:
    made = plan(state, config)
    return View(state, made, findings(state, made), None)


@settings(max_examples=40)
@given(snapshots(), configs())
def test_without_names_it_is_the_same_host(state: Snapshot, config: Config) -> None:
    before = view(state, config)
    after = anonymous(before, config)
    assert [(a.irq, type(a), a.reason.code) for a in after.plan.actions] == [
        (a.irq, type(a), a.reason.code) for a in before.plan.actions
    ]
    assert [pin.after for pin in after.plan.pins] == [pin.after for pin in before.plan.pins]
    assert [each.code for each in after.findings] == [each.code for each in before.findings]


TOKEN = "S3CR3T"


@st.composite
def secretive(draw: st.DrawFn) -> tuple[View, Config]:
    """A host in which whatever somebody else has named or worded has the token in it."""
    state = draw(snapshots())
    guests = tuple(
        replace(
            each,
            name=draw(st.sampled_from([TOKEN, f"{TOKEN}-{each.name}", f"vm-{TOKEN}"])),
            uuid=draw(st.none() | st.just(f"{TOKEN}-{each.name}")),
            problems=draw(st.just(()) | st.just((f"no {TOKEN}",))),
            devices=tuple(
                replace(device, mac=f"52:{TOKEN}", alias=f"ua-{TOKEN}") for device in each.devices
            ),
        )
        for each in state.guests
    )
    aimed = draw(aims(state))
    state = replace(
        state,
        guests=guests,
        recording=draw(st.none() | st.just(f"/home/{TOKEN}/host")),
        gaps=(Gap(f"/run/{TOKEN}.pid", "EACCES"), Gap("guests", f"qemu+ssh://{TOKEN}/system")),
        readers={each.key: "libvirt" for each in guests},
        aimed={
            device: {n: replace(one, why=one.why and TOKEN) for n, one in vectors.items()}
            for device, vectors in aimed.items()
        },
    )
    config = draw(configs())
    rules = tuple(
        replace(each, origin=f"rule {n} of /home/{TOKEN}/x.toml", guest=each.guest and f"*{TOKEN}*")
        for n, each in enumerate(config.rules)
    )
    config = replace(config, rules=rules, default_from=f"default of /{TOKEN}.toml")
    seen = view(state, config)
    told = (*seen.findings, *rules_unmatched(unmatched(config, state.guests, state.pci)))
    told += (Finding("libvirt-silent", Severity.WARNING, TOKEN, TOKEN, TOKEN),)
    entry = LogEntry(1.0, 4, f"{TOKEN}: refused", {"guest": TOKEN})
    daemon = DaemonStatus(
        1, 1.0, "0.1.0", "polling", f"libvirt {TOKEN}", None, told, recent=(entry,)
    )
    return seen._replace(findings=told, daemon=daemon), config


def whole(seen: View) -> str:
    return pages.html("virtirq report", body(seen, None, 0.0))


@settings(max_examples=60)
@given(secretive(), st.booleans())
def test_nothing_that_others_have_named_or_worded_is_on_a_page_for_strangers(
    given_: tuple[View, Config], part: bool
) -> None:
    seen, config = given_
    if part:
        seen = seen._replace(plan=replace(seen.plan, guests=seen.plan.guests[:1]))
    assert TOKEN in whole(seen)
    assert TOKEN not in whole(anonymous(seen, config))
    assert TOKEN not in repr(anonymous(seen, config))


def test_events_are_those_of_the_guests_and_none_for_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = tmp_path / "web.xml"
    domain.write_text(f"<domain type='kvm'><name>{SECRET}</name><vcpu>1</vcpu></domain>")
    asked: list[int | None] = []

    def read(_since: object, last: int | None) -> journald.Read:
        asked.append(last)
        entries = [
            LogEntry(
                float(n), 4, f"moved {n}\nmore", {"guest": guest, "reason": "apply: wrong-cpu"}
            )
            for guest in (SECRET, "other")
            for n in range(1, 300)
        ]
        found = [journald.Journaled(each, 1) for each in entries]
        return journald.Read(found, (Gap("journald", "not all of it"),))

    monkeypatch.setattr(journald, "read", read)
    _, page = report(tmp_path, "--domain", str(domain))
    assert asked == [200]
    assert ["journald", "not all of it"] in page.rows
    assert len([row for row in page.rows if row[2:3] == ["apply"]]) == 200
    file = tmp_path / "some.html"
    assert main(["--domain", str(domain), "report", SECRET, "-q", "-o", str(file)]) == 0
    events = [row for row in Page(file.read_text()).rows if row[2:3] == ["apply"]]
    assert [row[1:] for row in events[-1:]] == [[SECRET, "apply", "moved 299"]]
    assert {row[1] for row in events} == {SECRET}
    assert asked == [200, 5000]
    words = ("--domain", str(domain), "report", "--redact", "-q", "-o", str(file))
    assert main(words) == 0
    assert asked == [200, 5000]
    assert "moved" not in file.read_text()
    monkeypatch.setattr(journald, "read", lambda *_: journald.Read([], ()))
    assert (
        "None is known to the daemon or the journal" in report(tmp_path, "--domain", str(domain))[0]
    )


def test_what_may_name_a_guest_in_a_gap_is_left_out() -> None:
    gaps = (Gap("/run/libvirt/qemu/secret.pid", "EACCES"), Gap("/proc/irq/*/x", "EACCES"))
    state = snapshot(guests=[guest("secret", problems=("secret's",))], gaps=gaps)
    after = anonymous(view(state, Config()), Config())
    assert "secret" not in repr(after)
    assert after.snapshot.gaps[1] == gaps[1]


def test_of_some_guests_the_others_are_left_out() -> None:
    state = snapshot(guests=[guest("a", ["1"]), guest("b", ["2"], [])], interrupts=[msix(1, 0)])
    whole = view(state, Config(rules=(Rule(NATIVE, guest="a"),)))
    part = whole._replace(plan=replace(whole.plan, guests=whole.plan.guests[1:]))
    after = anonymous(part, Config())
    assert [each.guest.name for each in after.plan.guests] == ["guest-2"]
    assert NIC not in [each.device.address for one in after.plan.guests for each in one.devices]
