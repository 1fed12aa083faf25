"""Nova's hw:pci_irq_affinity_mask: from the flavor in the domain's metadata to a directive."""

from __future__ import annotations

import pytest

from virtirq.guests.libvirt import nova
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.libvirt.reading import NAMESPACE
from virtirq.guests.libvirt.redaction import redact
from virtirq.model import NATIVE


def domain(*specs: str, version: str = "1.1", ours: str = "") -> str:
    """A domain as Nova's libvirt driver defines it."""
    flavor = "".join(specs)
    return f"""<domain type='kvm'><name>instance-0000002a</name>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/{version}">
      <nova:package version="31.0.0"/>
      <nova:name>secret-name</nova:name>
      <nova:flavor name="nfv.small" id="5">
        <nova:memory>4096</nova:memory>
        <nova:extraSpecs>{flavor}</nova:extraSpecs>
      </nova:flavor>
      <nova:owner><nova:user uuid="1">secret-user</nova:user></nova:owner>
    </nova:instance>
    {ours}
  </metadata><vcpu>4</vcpu></domain>"""


def spec(text: str, name: str = nova.KEY) -> str:
    return f'<nova:extraSpec name="{name}">{text}</nova:extraSpec>'


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_the_flavors_mask_is_a_directive_over_vcpus(version: str) -> None:
    text = domain(spec("dedicated", "hw:cpu_policy"), spec(" 0, 2 "), version=version)
    guest = parse_domain(text)
    assert str(guest.directive) == "vcpus 0,2"
    assert guest.directive_from == "Nova flavor's hw:pci_irq_affinity_mask"
    assert guest.problems == ()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("1", "1"),
        ("0-3", "0-3"),
        ("0-3,^1", "0,2-3"),
        ("^1,0-3", "0,2-3"),
        ("1,,2,", "1-2"),
        ("1 - 3", "1-3"),
        (" 0 -\t3 , ^ 1 ", "0,2-3"),
        ("0-3,^1 - 2", "0,3"),
        ("+1", "1"),
    ],
)
def test_a_mask_is_read_as_starlingx_reads_it(mask: str, expected: str) -> None:
    guest = parse_domain(domain(spec(mask)))
    assert guest.directive is not None
    assert str(guest.directive.vcpus) == expected


NAMES_NONE = f"{nova.ORIGIN}, which names none of its vCPUs"
ODD = f"{nova.ORIGIN}, which is not understood"


@pytest.mark.parametrize(
    ("mask", "origin"),
    [
        ("", NAMES_NONE),
        ("2,^2", NAMES_NONE),
        ("^2", NAMES_NONE),
        ("4-7", NAMES_NONE),
        ("999999999", NAMES_NONE),
        ("all", ODD),
        ("0-x", ODD),
        ("0x3", ODD),
        ("1-", ODD),
        ("3-1", ODD),
        ("1 2", ODD),
        ("1-2-3", ODD),
        ("-1", ODD),
    ],
)
def test_a_mask_that_means_no_vcpu_leaves_devices_alone(mask: str, origin: str) -> None:
    """And never has them follow the very vCPUs that it was to spare."""
    guest = parse_domain(domain(spec(mask)))
    assert (guest.directive, guest.directive_from) == (NATIVE, origin)
    (problem,) = guest.problems
    assert repr(mask) in problem
    assert problem.endswith(": its devices are left alone")


@pytest.mark.parametrize("mask", ["1-7", "1-3,9", "0-999999999,^0", "1-4"])
def test_vcpus_that_the_guest_has_not_are_passed_over_and_told(mask: str) -> None:
    guest = parse_domain(domain(spec(mask)))
    assert str(guest.directive) == "vcpus 1-3"
    assert guest.problems == (
        f"Nova metadata: {nova.KEY} {mask!r} names vCPUs past the guest's last, 3",
    )


def test_our_own_setting_is_worth_more() -> None:
    own = f"<v:irqs xmlns:v='{NAMESPACE}' cpuset='native'/>"
    guest = parse_domain(domain(spec("0"), ours=own))
    assert (str(guest.directive), guest.directive_from) == ("native", "domain metadata")


def test_other_metadata_is_not_read() -> None:
    assert parse_domain(domain(spec("dedicated", "hw:cpu_policy"))).directive is None
    foreign = domain(spec("0")).replace("openstack.org/xmlns", "example.org/xmlns")
    assert parse_domain(foreign).directive is None


def test_a_huge_extra_spec_does_not_hide_the_guest() -> None:
    guest = parse_domain(domain(spec("x" * 100_000, "hw:other"), spec("1")))
    assert str(guest.directive) == "vcpus 1"


def test_a_redacted_domain_keeps_the_mask_and_nothing_else_of_nova() -> None:
    text = redact(domain(spec("dedicated", "hw:cpu_policy"), spec("0-1")))
    assert str(parse_domain(text).directive) == "vcpus 0-1"
    for told in ("secret", "dedicated", "nfv.small", "4096"):
        assert told not in text
    assert "nova" not in redact(domain(spec("dedicated", "hw:cpu_policy")))
