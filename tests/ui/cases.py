"""The table of command lines: what is typed, on which host, and the exit code it must give.

Each case has a golden file in ``tests/golden``; ``make golden`` writes them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Case(NamedTuple):
    """`line` is split as a shell splits it; ``{demo}`` and the like are files of the test."""

    name: str
    line: str
    exit: int = 0
    files: Mapping[str, str] = MappingProxyType({})


NATIVE_DISKS = """\
default = "auto"
[[rule]]
class = "nvme"
directive = "native"
[[rule]]
guest = "d*"
directive = "2-3"
"""

RULES = """\
[[rule]]
guest = "web"
address = "0000:42:*"
directive = "native"
[[rule]]
address = "0000:44:00.0"
directive = "native"
"""

HOSTDEV = """\
<domain type='kvm'><name>{name}</name><vcpu>{vcpus}</vcpu><cputune>{pins}</cputune><devices>
<hostdev mode='subsystem' type='pci'><source>
<address domain='0x0000' bus='0x{bus}' slot='0x00' function='0x0'/>
</source></hostdev></devices></domain>
"""


def hostdev(name: str, bus: str, *pins: str) -> str:
    tune = "".join(f"<vcpupin vcpu='{v}' cpuset='{cpus}'/>" for v, cpus in enumerate(pins))
    return HOSTDEV.format(name=name, vcpus=len(pins) or 2, pins=tune, bus=bus)


CASES = [
    # What each verb shows on the two recorded hosts.
    Case("status-two-node", "-s {demo} status"),
    Case("status-is-the-default", "-s {single}"),
    Case("status-json", "-s {single} status --json"),
    Case("status-native", "-s {demo} --config {config} status", files={"config": NATIVE_DISKS}),
    Case("check-rules", "-s {demo} --config {x} check", 3, files={"x": RULES}),
    Case("status-no-guests", "-s {bare}"),
    Case("plan-two-node", "-s {demo} plan"),
    Case("plan-one-guest", "-s {demo} plan web"),
    Case("plan-json", "--json -s {demo} plan db"),
    Case(
        "plan-another-guest", "-s {bare} --domain {x} plan", files={"x": hostdev("vm", "41", "4")}
    ),
    Case(
        "plan-absent-device", "-s {bare} --domain {x} plan", files={"x": hostdev("vm", "99", "4")}
    ),
    Case(
        "plan-two-domains",
        "-s {bare} --domain {x} plan --domain {y}",
        files={"x": hostdev("a", "41", "4", "5"), "y": hostdev("b", "42", "6-7", "6-7")},
    ),
    Case("check-two-node", "-s {demo} check", 3),
    Case("check-json", "-s {demo} check -J", 3),
    Case("check-unclaimed", "-s {bare} check", 3),
    Case("apply-dry-run", "-s {demo} apply --dry-run"),
    Case("explain-guest", "-s {demo} explain db"),
    Case("explain-device", "-s {demo} explain 43:10.0"),
    Case("explain-irq", "-s {single} explain 45"),
    Case("explain-code", "explain node-mismatch"),
    Case("explain-code-json", "explain node-mismatch --json"),
    Case("daemon-on-a-recording", "-s {demo} daemon", 2),
    Case("metrics-json", "-s {single} metrics --json", 2),
    Case("config-show", "--config {config} config show", files={"config": NATIVE_DISKS}),
    Case("config-check", "--config {config} config check", files={"config": NATIVE_DISKS}),
    Case("place", "-s {demo} place web"),
    Case("place-cpus", "-s {demo} place web --cpus 4-7"),
    Case("place-json", "-s {demo} place db --json"),
    Case("draw", "-s {single} draw --plan --output -"),
    Case("draw-no-such-guest", "-s {demo} draw mail -o {absent}.svg", 2),
    Case("draw-unknown-form", "-s {demo} draw -o {absent}.jpg", 2),
    Case("draw-directory-absent", "-s {demo} draw -o {absent}/host.svg", 1),
    Case("draw-json", "-s {demo} draw -o {absent}.svg --json", 2),
    Case("report-unknown-form", "-s {demo} report -o {absent}.svg", 2),
    Case("report-json", "-s {demo} report -o {absent}.html --json", 2),
    Case("report-no-time", "-s {demo} report -o {absent}.html --rates never", 2),
    Case("quiet", "-q -s {demo} status"),
    Case("version", "--version"),
    # What cannot be done, and what is said about it.
    Case("no-such-verb", "stats", 2),
    Case("no-such-option", "status --frobnicate", 2),
    Case("misspelt-option", "--confg x status", 2),
    Case("no-abbreviations", "-s {demo} status --js", 2),
    Case("no-such-guest", "-s {demo} plan mail", 2),
    Case("no-such-object", "-s {demo} explain 4711", 2),
    Case("explain-needs-an-object", "explain", 2),
    Case("place-no-room", "-s {demo} place db --node 1", 1),
    Case("place-no-such-node", "-s {demo} place db --node one", 2),
    Case("place-no-such-guest", "-s {demo} place mail", 2),
    Case("place-apply-on-a-recording", "-s {demo} place web --apply", 2),
    Case("place-live-of-what", "-s {demo} place web --live", 2),
    Case("apply-to-a-recording", "-s {demo} apply", 2),
    Case("restore-on-a-recording", "-s {demo} restore", 2),
    Case("sysroot-empty", "-s '' status", 2),
    Case("sysroot-absent", "-s {absent} status", 2),
    Case("sysroot-not-an-archive", "-s {x} status", 2, {"x": "no archive\n"}),
    Case("sysroot-not-a-host", "-s {empty} status", 2),
    Case("domain-absent", "-s {bare} --domain {absent} status", 2),
    Case("domain-not-xml", "-s {bare} --domain {x} status", 2, {"x": "vm\n"}),
    Case("domain-bad-cpuset", "-s {bare} --domain {x} plan", 2, {"x": hostdev("a", "41", "4-")}),
    Case(
        "domain-twice",
        "-s {bare} --domain {x} --domain {y} plan",
        2,
        {"x": hostdev("a", "41", "4"), "y": hostdev("a", "42", "4")},
    ),
    Case("demo-takes-no-options", "-s {demo} demo", 2),
    Case("config-show-json", "--config {config} config show -J", files={"config": NATIVE_DISKS}),
    Case("config-is-a-directory", "--config {empty} config check", 2),
    Case("config-absent", "--config {absent} status", 2),
    Case("config-not-toml", "--config {x} config check", 2, {"x": "default = auto\n"}),
    Case("config-unknown-key", "--config {x} config check", 2, {"x": 'defualt = "auto"\n'}),
    Case("config-bad-directive", "--config {x} config check", 2, {"x": 'default = "best"\n'}),
    Case(
        "config-bad-rule",
        "--config {x} config check",
        2,
        {"x": '[[rule]]\ndirective = "auto"\nnode = "one"\n'},
    ),
    Case(
        "config-many-errors",
        "--config {x} config check",
        2,
        {
            "x": 'spread = 2\n[metrics]\nlisten = "x"\n[[rule]]\naddress = "82:0.0"\nguset = "a"\n'
            'owner = "nobody-at-all"\n[libvirt]\nurl = ""\n'
        },
    ),
    Case("record-suffix", "-s {demo} record {absent}", 2),
    Case("record-directory-absent", "-s {demo} record {absent}/host.tar.xz", 2),
    Case("demo-directory-in-use", "demo {used}", 2),
]
