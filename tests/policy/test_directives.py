"""Which directive wins, what a rule's conditions mean, and how vectors are spread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations, product
from typing import Any, Final

import pytest

from tests.policy.facts import NIC, function, guest
from virtirq.cpuset import CpuSet
from virtirq.model import AUTO, NATIVE, Directive, GuestDevice, PciDevice, Spread, Word
from virtirq.policy.config import Config, Rule
from virtirq.policy.directives import asked_for, fits, unmatched
from virtirq.policy.findings import rules_unmatched

FOUR: Final = tuple(Directive(None, CpuSet([number])) for number in range(4))
FITS: Final = Rule(FOUR[2], origin="rule 1 of a.toml")
FITS_NOT: Final = Rule(NATIVE, guest="nobody", origin="rule 0 of a.toml")


@pytest.mark.parametrize(
    ("device", "domain", "rule"), list(product([False, True], repeat=3)), ids=str
)
def test_the_first_that_is_set_wins(device: bool, domain: bool, rule: bool) -> None:
    it = GuestDevice(
        NIC,
        "hostdev",
        directive=FOUR[0] if device else None,
        directive_from="alias net0" if device else None,
    )
    owner = guest(
        devices=[it],
        directive=FOUR[1] if domain else None,
        directive_from="<metadata>" if domain else None,
    )
    config = Config(
        FOUR[3], rules=(FITS_NOT, *([FITS] if rule else [])), default_from="default of a.toml"
    )
    asked = asked_for(owner, it, function(), config)
    places = (
        (device, FOUR[0], "alias net0"),
        (domain, FOUR[1], "<metadata>"),
        (rule, FOUR[2], "rule 1 of a.toml"),
        (True, FOUR[3], "default of a.toml"),
    )
    expected = next((directive, origin) for there, directive, origin in places if there)
    assert (asked.directive, asked.origin) == expected


def test_settings_without_a_named_origin() -> None:
    it = GuestDevice(NIC, "hostdev", directive=NATIVE)
    assert asked_for(guest(), it, None, Config()).origin == "device setting"
    plain = GuestDevice(NIC, "hostdev")
    assert asked_for(guest(directive=NATIVE), plain, None, Config()).origin == "domain setting"
    assert asked_for(guest(), plain, None, Config()).origin == "built-in default"


def test_the_first_rule_that_fits_wins() -> None:
    rules = (FITS_NOT, FITS, Rule(FOUR[3], origin="rule 2 of a.toml"))
    asked = asked_for(guest(), guest().devices[0], function(), Config(rules=rules))
    assert (asked.directive, asked.origin) == (FOUR[2], "rule 1 of a.toml")


def test_native_by_default_makes_it_opt_in() -> None:
    config = Config(NATIVE, rules=(Rule(AUTO, guest="rt-*"),))
    assert asked_for(guest("web"), guest().devices[0], function(), config).directive == NATIVE
    assert asked_for(guest("rt-1"), guest().devices[0], function(), config).directive == AUTO


class TestProcess:
    """One that holds devices and runs no vCPUs: left alone unless somebody says otherwise."""

    IT: Final = replace(guest("dpdk-7"), kind="process")

    @pytest.mark.parametrize("default", [AUTO, NATIVE, FOUR[3]], ids=str)
    def test_the_default_is_not_for_it(self, default: Directive) -> None:
        config = Config(default, default_from="default of a.toml")
        asked = asked_for(self.IT, self.IT.devices[0], function(), config)
        assert (asked.directive, asked.origin) == (NATIVE, "default for a process without vCPUs")

    @pytest.mark.parametrize("conditions", [{}, {"kind": "process"}, {"guest": "dpdk-*"}], ids=str)
    def test_a_rule_is(self, conditions: dict[str, Any]) -> None:
        config = Config(rules=(Rule(AUTO, origin="rule 1 of a.toml", **conditions),))
        asked = asked_for(self.IT, self.IT.devices[0], function(), config)
        assert (asked.directive, asked.origin) == (AUTO, "rule 1 of a.toml")

    def test_a_setting_is(self) -> None:
        it = replace(self.IT, directive=FOUR[1], directive_from="<metadata>")
        asked = asked_for(it, it.devices[0], function(), Config())
        assert (asked.directive, asked.origin) == (FOUR[1], "<metadata>")

    def test_a_rule_for_machines_is_not(self) -> None:
        config = Config(rules=(Rule(AUTO, kind="machine"),))
        assert asked_for(self.IT, self.IT.devices[0], function(), config).directive == NATIVE
        assert asked_for(guest(), guest().devices[0], function(), config).origin == "rule"

    def test_its_spread_is_the_configurations(self) -> None:
        config = Config(AUTO, spread=Spread.MASK)
        asked = asked_for(self.IT, self.IT.devices[0], function(), config)
        assert asked.spread is Spread.MASK


OWNED: Final = guest(owner=107)
CONDITIONS: Final[dict[str, tuple[list[object], list[object]]]] = {
    # key: values that fit guest "vm" with function() on node 0, values that do not
    "guest": (["vm", "v*", "v?", "[uv]m", "*"], ["VM", "v", "vm-2", "[!v]m", ""]),
    "owner": ([107], [0, 1000, "root"]),
    "source": (["libvirt"], ["process"]),
    "kind": (["machine"], ["process"]),
    "device": (
        ["8086:1572", "8086:*", "*:1572", "*", "8086:15??", "808[56]:*", "8086:157[0-9]"],
        ["8086:1573", "10de:*", "*:8086", "8086:15?", "8086:"],
    ),
    "class_": (["network", "*", "02", "0200", "020000", "0"], ["ethernet", "03", "0201", "n"]),
    "driver": (["vfio-pci", "vfio*", "*"], ["VFIO-PCI", "vfio", "ice", ""]),
    "node": ([0], [1, -1]),
}


OF_GUESTS: Final = ("guest", "owner", "source", "kind")


@pytest.mark.parametrize("key", CONDITIONS)
def test_each_condition(key: str) -> None:
    fitting, other = CONDITIONS[key]
    for value in fitting:
        assert fits(_rule({key: value}), OWNED, function()), value
    for value in other:
        assert not fits(_rule({key: value}), OWNED, function()), value


def test_who_tells_of_a_guest_and_whose_it_is() -> None:
    it = replace(guest("dpdk-7"), source="vfio-process", owner=None)
    assert fits(_rule({"source": "process"}), it, function())
    assert not fits(_rule({"source": "libvirt"}), it, function())
    assert not fits(_rule({"owner": 0}), it, function()), "not known is nobody"
    assert fits(_rule({"source": "libvirt"}), replace(it, source="domain-xml"), function())


def test_hexadecimal_conditions_in_either_case() -> None:
    display = function(vendor=0x10DE, device=0x1EB8, class_code=0x0C0330)
    assert fits(_rule({"device": "10DE:1eB8", "class_": "0C03"}), OWNED, display)


@pytest.mark.parametrize(
    "keys", [each for size in range(9) for each in combinations(CONDITIONS, size)], ids="+".join
)
def test_every_combination_needs_all_to_hold(keys: Iterable[str]) -> None:
    holding = {key: CONDITIONS[key][0][0] for key in keys}
    assert fits(_rule(holding), OWNED, function())
    for broken in keys:
        conditions = holding | {broken: CONDITIONS[broken][1][0]}
        assert not fits(_rule(conditions), OWNED, function()), broken


@pytest.mark.parametrize("key", [key for key in CONDITIONS if key not in OF_GUESTS])
def test_a_device_that_is_not_there_fits_no_condition_on_it(key: str) -> None:
    for value in CONDITIONS[key][0]:
        assert not fits(_rule({key: value}), OWNED, None), value
    assert fits(_rule({}), OWNED, None)
    assert fits(_rule({"guest": "vm"}), OWNED, None)


@pytest.mark.parametrize(
    ("unread", "key"),
    [
        ("vendor", "device"),
        ("device", "device"),
        ("class_code", "class_"),
        ("node", "node"),
    ],
)
def test_what_could_not_be_read_fits_nothing(unread: str, key: str) -> None:
    unknown: dict[str, Any] = {unread: None}
    for value in CONDITIONS[key][0]:
        assert not fits(_rule({key: value}), OWNED, function(**unknown)), value


def test_a_device_without_driver_and_without_node() -> None:
    bare = function(driver=None, node=-1)
    assert not fits(_rule({"driver": "vfio-pci"}), guest(), bare)
    assert fits(_rule({"driver": "*"}), guest(), bare)
    assert fits(_rule({"node": -1}), guest(), bare)


WORDS = [Directive(word) for word in Word]
MASK, VECTOR = Spread.MASK, Spread.VECTOR


@pytest.mark.parametrize(
    ("of_rule", "of_config"), list(product([None, MASK, VECTOR], repeat=2)), ids=str
)
@pytest.mark.parametrize("directive", [*WORDS, FOUR[0]], ids=str)
def test_spread(directive: Directive, of_rule: Spread | None, of_config: Spread | None) -> None:
    config = Config(spread=of_config, rules=(Rule(directive, spread=of_rule),))
    asked = asked_for(guest(), guest().devices[0], function(), config)
    by_directive = MASK if directive.word is None else VECTOR
    assert asked.spread is (of_rule or of_config or by_directive)


def test_spread_of_a_rule_holds_for_what_a_guest_asks() -> None:
    config = Config(rules=(Rule(NATIVE, guest="vm", spread=VECTOR),))
    asked = asked_for(guest(directive=FOUR[1]), guest().devices[0], function(), config)
    assert (asked.directive, asked.spread) == (FOUR[1], VECTOR)


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (0x010802, "nvme"),
        (0x010601, "storage"),
        (0x0C0330, "usb"),
        (0x0C0500, "serial-bus"),
        (0x030200, "display"),
        (0x040300, "audio"),
        (0x0FFFFF, "device"),
    ],
)
def test_class_words_are_those_of_status(code: int, word: str) -> None:
    device = PciDevice(NIC, class_code=code)
    assert device.kind == word
    assert fits(_rule({"class_": word}), guest(), device)


def _rule(conditions: dict[str, Any]) -> Rule:
    return Rule(AUTO, **conditions)


@pytest.mark.parametrize(
    ("key", "pattern", "fitting"),
    [
        ("address", "0000:82:00.0", True),
        ("address", "82:00.0", True),
        ("address", "0000:82:*", True),
        ("address", "*:82:00.?", True),
        ("address", "0000:82:00.1", False),
        ("address", "0001:82:00.0", False),
        ("device", "0000:82:00.0", True),
        ("device", "0000:82:00.1", False),
        ("device", "0000:82:*", True),
        ("device", "0000:83:*", False),
    ],
)
def test_by_address(key: str, pattern: str, fitting: bool) -> None:
    """Two equal devices of one guest can be told apart in no other way."""
    assert fits(_rule({key: pattern}), guest(), function()) is fitting
    if key == "address":  # what the host does not have has an address all the same
        assert fits(_rule({key: pattern}), guest(), None, NIC) is fitting


def test_rules_that_fit_nothing() -> None:
    config = Config(rules=(_rule({"guest": "vm"}), _rule({"guest": "wm"}), _rule({"node": 3})))
    pci = {NIC: function()}
    assert unmatched(config, [guest()], pci) == list(config.rules[1:])
    assert unmatched(config, [], pci) == []  # nothing could fit
    (first, _) = rules_unmatched(config.rules[1:])
    assert (first.code, first.message) == ("rule-unmatched", "rule fits no device of a guest")
