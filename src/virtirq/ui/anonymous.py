"""What is seen of a host without the names of its guests, for who sends it to strangers.

Names are not searched for in sentences, where one such as ``101`` could be anything: guests get
other names before anything is planned or said, and all of that is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from virtirq.model import Aimed, Gap, Guest, Plan
from virtirq.policy.config import Config, Rule
from virtirq.policy.directives import unmatched
from virtirq.policy.findings import findings, in_order, rules_unmatched
from virtirq.policy.plan import plan
from virtirq.ui.inputs import View, subjects

_PUBLIC: Final = ("/sys/", "/proc/irq/")
"""Nothing that is read there names a guest."""
_LEFT_OUT: Final = "(left out)"


def anonymous(view: View, config: Config) -> View:
    """The same host, in which guests are called ``guest-1`` and so on, in the order of their names.

    Without UUIDs, MAC addresses, aliases, names of files and of hosts, and what others than the
    plan have found, counted and logged: their words are made elsewhere.
    """
    config = _without_files(config)
    before = view.snapshot
    guests = _renamed(before.guests)
    both = list(zip(before.guests, guests, strict=True))
    snapshot = replace(
        before,
        guests=guests,
        readers={
            new.key: before.readers[old.key] for old, new in both if old.key in before.readers
        },
        aimed={
            device: {vector: _aimed(each) for vector, each in vectors.items()}
            for device, vectors in before.aimed.items()
        },
        recording=None if before.recording is None else _LEFT_OUT,
        gaps=tuple(
            each if each.path.startswith(_PUBLIC) else Gap(_LEFT_OUT, _LEFT_OUT)
            for each in before.gaps
        ),
    )
    whole = plan(snapshot, replace(config, rules=tuple(_rules(config, both))))
    chosen = {each.guest.key for each in view.plan.guests}
    names = {new.name for old, new in both if old.key in chosen}
    part = Plan(tuple(each for each in whole.guests if each.guest.name in names))
    found = list(findings(snapshot, whole))
    if any(each.code == "rule-unmatched" for each in view.findings):
        found += rules_unmatched(unmatched(config, before.guests, before.pci))
    if len(part.guests) < len(whole.guests):
        concerned = subjects(part)
        found = [each for each in found if each.subject in concerned]
    daemon = view.daemon and replace(
        view.daemon, guests=_LEFT_OUT, findings=(), counters=None, recent=()
    )
    return View(snapshot, part, in_order(found), daemon)


def _renamed(guests: Sequence[Guest]) -> tuple[Guest, ...]:
    """Their order by name stays, since it decides who has a device that two claim."""
    wide = len(str(len(guests)))
    order = sorted(range(len(guests)), key=lambda each: (guests[each].name, guests[each].key, each))
    names = {each: f"guest-{place:0{wide}d}" for place, each in enumerate(order, start=1)}
    return tuple(
        replace(
            guest,
            name=names[number],
            uuid=None,
            problems=(_LEFT_OUT,) * len(guest.problems),
            devices=tuple(replace(each, alias=None, mac=None) for each in guest.devices),
        )
        for number, guest in enumerate(guests)
    )


def _without_files(config: Config) -> Config:
    """The same; of what is in it, only the place in the configuration is told."""
    rules = tuple(
        replace(rule, origin=f"rule {number} of the configuration")
        for number, rule in enumerate(config.rules, start=1)
    )
    own = config.default_from == Config().default_from
    default_from = config.default_from if own else "default of the configuration"
    return replace(config, rules=rules, default_from=default_from)


def _aimed(each: Aimed) -> Aimed:
    """Why a choice is not known may be told in words with the path of a monitor."""
    return replace(each, why=_LEFT_OUT) if each.why else each


def _rules(config: Config, both: Sequence[tuple[Guest, Guest]]) -> Iterator[Rule]:
    """The rules, where one that asks for a name becomes one for each guest that has such a name."""
    for rule in config.rules:
        if rule.guest is None:
            yield rule
            continue
        for old, new in both:
            if fnmatchcase(old.name, rule.guest):
                yield replace(rule, guest=new.name)
