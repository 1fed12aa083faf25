"""What a recording says of where a guest's threads ran."""

from __future__ import annotations

from dataclasses import replace

from virtirq.cpuset import CpuSet
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.libvirt.redaction import redact
from virtirq.model import Vcpu

TEXT = """<domain type='kvm'><name>web</name><vcpu cpuset='0-3'>3</vcpu><iothreads>2</iothreads>
<cputune><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='1'/></cputune></domain>"""


def test_threads_are_written_where_they_may_run() -> None:
    guest = parse_domain(TEXT)
    seen = replace(
        guest,
        vcpus=(Vcpu(0, CpuSet([5]), 77), Vcpu(1, None), Vcpu(2, CpuSet([0, 1]))),
        emulator=CpuSet([6]),
        iothreads={2: CpuSet([7])},
    )
    recorded = parse_domain(redact(TEXT, seen=seen))
    assert recorded.vcpus == (
        Vcpu(0, CpuSet([5]), apic=0),
        Vcpu(1, apic=1),
        Vcpu(2, CpuSet([0, 1]), apic=2),
    )
    assert (recorded.emulator, recorded.iothreads) == (seen.emulator, seen.iothreads)


def test_without_a_look_at_the_guest_the_pins_stay() -> None:
    recorded = parse_domain(redact(TEXT))
    assert recorded.vcpus == parse_domain(TEXT).vcpus


def test_of_qemus_own_arguments_the_devices_stay() -> None:
    words = ["-fw_cfg", "name=key,string=secret", "--device", "vfio-pci,host=82:0.0,id=secret"]
    arguments = "".join(f"<q:arg value='{each}'/>" for each in words)
    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    text = TEXT.replace(
        "</domain>", f"<q:commandline xmlns:q='{uri}'>{arguments}</q:commandline></domain>"
    )
    recorded = redact(text)
    assert "secret" not in recorded
    assert parse_domain(recorded).devices == parse_domain(text).devices != ()
    assert "commandline" not in redact(TEXT)
    assert redact(recorded) == recorded


def test_of_overridden_properties_the_function_stays() -> None:
    def device(alias: str, name: str, value: str) -> str:
        given = f"<q:property name='{name}' type='string' value='{value}'/>"
        return f"<q:device alias='{alias}'><q:frontend>{given}</q:frontend></q:device>"

    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    inner = device("hostdev0", "host", "0000:99:00.0") + device("net0", "mac", "secret")
    source = "<source><address bus='0x98'/></source><alias name='hostdev0'/>"
    held = f"<devices><hostdev mode='subsystem' type='pci'>{source}</hostdev></devices>"
    override = f"<q:override xmlns:q='{uri}'>{inner}</q:override>"
    text = TEXT.replace("</domain>", f"{held}{override}</domain>")
    recorded = redact(text)
    assert "secret" not in recorded
    assert "0000:99:00.0" in [str(each.address) for each in parse_domain(recorded).devices]
    assert parse_domain(recorded).devices == parse_domain(text).devices
    assert redact(recorded) == recorded
    alone = f"<q:override xmlns:q='{uri}'>{device('net0', 'mac', 'secret')}</q:override></domain>"
    assert "override" not in redact(TEXT.replace("</domain>", alone))


def test_of_labels_the_user_stays() -> None:
    labels = "".join(
        f"<seclabel model='{model}'><label>{label}</label></seclabel>"
        for model, label in (("selinux", "system_u:secret"), ("dac", "+107:+107"))
    )
    recorded = redact(TEXT.replace("</domain>", f"{labels}</domain>"))
    assert "secret" not in recorded
    assert parse_domain(recorded).owner == 107
