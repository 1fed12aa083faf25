"""Verbs that ask libvirt: exact output of valid and invalid calls, on its real test driver."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import REPOSITORY
from tests.hostmaker import MadeHost
from tests.libvirtmaker import CONFIG, LIVE, NIC, URI, VF, domain_xml, held, ours
from tests.ui.schema import valid_if_json
from virtirq.control import cycle, sources
from virtirq.ui.cli import main
from virtirq.ui.verbs import place

DEMO = REPOSITORY / "src/virtirq/demo/two-node.tar.xz"
NOWHERE = "qemu+unix:///system?socket=/nonexistent"
REMOTE = "qemu+ssh://host1/system"
REFUSED = (
    f"virtirq: error: the guests of {REMOTE} run on another host:"
    " their interrupts are not this machine's\n"
    f"hint: run virtirq there; from here, only 'virtirq -c {REMOTE} status', settings and"
    " definitions work\n"
)
UNREACHED = (
    f"virtirq: error: cannot connect to libvirt at {NOWHERE}:"
    " Failed to connect socket to '/nonexistent': No such file or directory\n"
    "hint: start libvirt's daemon, or name another URI with -c\n"
)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The guest web is defined and runs, db is defined alone, job runs alone."""
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", URI)
    with held() as connection:
        connection.defineXML(domain_xml("web")).create()
        connection.defineXML(domain_xml("db", devices=NIC))
        connection.createXML(domain_xml("job", devices=VF), 0)
        yield connection


class Case(NamedTuple):
    """`before` are command lines that set the scene."""

    line: str
    out: str = ""
    error: str = ""
    exit: int = 0
    before: tuple[str, ...] = ()


HINT = "hint: run 'virtirq apply {}' to move its interrupts now\n"
CASES = {
    "set both": Case(
        "set web auto",
        "web (live): auto, was not set\nweb (config): auto, was not set\n" + HINT.format("web"),
    ),
    "set again": Case(
        "set web auto",
        "web (live): auto, unchanged\nweb (config): auto, unchanged\n",
        before=("set web auto",),
    ),
    "set live": Case(
        "set --live web 82:00.0 2-5,^3",
        "web 0000:82:00.0 (live): 2,4-5, was not set\n" + HINT.format("web"),
    ),
    "set config": Case(
        "set web 82:00.0 native --config",
        "web 0000:82:00.0 (config): native, was auto\n",
        before=("set web 82:00.0 auto",),
    ),
    "set both by flags": Case(
        "set web ua-gpu local --config --live",
        "web ua-gpu (live): local, was not set\nweb ua-gpu (config): local, was not set\n"
        + HINT.format("web"),
    ),
    "set stopped": Case("set db emulator", "db (config): emulator, was not set\n"),
    "set transient": Case(
        "set job 84:10.1 4",
        "job 52:54:00:0a:0b:0c (live): 4, was not set\n" + HINT.format("job"),
    ),
    "set json": Case(
        "-J set db 3",
        '{\n  "schema": 1,\n  "guest": "db",\n  "changes": [\n    {\n      "where": "config",\n'
        '      "subject": "",\n      "before": null,\n      "after": "3"\n    }\n  ],\n'
        '  "next": null\n}\n',
    ),
    "set quiet": Case("-q set db 3"),
    "unset": Case(
        "unset web",
        "web (live): not set, was auto\nweb (config): not set, was auto\n" + HINT.format("web"),
        before=("set web auto",),
    ),
    "unset device": Case(
        "unset db 82:00.0",
        "db 0000:82:00.0 (config): not set, was 2\n",
        before=("set db 82:00.0 2",),
    ),
    "unset nothing": Case("unset db", "db (config): not set, unchanged\n"),
    "get": Case(
        "get web",
        "web (live)\n"
        "  guest: auto (domain metadata)\n"
        "  DEVICE        ALIAS   MAC                ELEMENT    SETTING  FROM\n"
        "  0000:84:10.1  -       52:54:00:0a:0b:0c  interface  native   device metadata\n"
        "  0000:82:00.0  -       -                  hostdev    auto     domain metadata\n"
        "  0000:83:00.0  ua-gpu  -                  hostdev    auto     domain metadata\n"
        "  at start      -       52:54:00:0a:0b:0d  interface  auto     domain metadata\n",
        before=("set web auto", "set web 84:10.1 native"),
    ),
    "get config": Case(
        "get web --config",
        "web (config)\n"
        "  guest: not set: the configuration decides\n"
        "  DEVICE        ALIAS   MAC                ELEMENT    SETTING  FROM\n"
        "  0000:84:10.1  -       52:54:00:0a:0b:0c  interface  -        "
        "not set: the configuration decides\n"
        "  0000:82:00.0  -       -                  hostdev    -        "
        "not set: the configuration decides\n"
        "  0000:83:00.0  ua-gpu  -                  hostdev    -        "
        "not set: the configuration decides\n"
        "  at start      -       52:54:00:0a:0b:0d  interface  3        device metadata\n",
        before=("set web 52:54:00:0a:0b:0d 3 --config",),
    ),
    "get device": Case(
        "get db 82:00.0", "2 (device metadata)\n", before=("set db 82:00.0 2", "set db auto")
    ),
    "get device of guest": Case(
        "get db 82:00.0", "auto (domain metadata)\n", before=("set db auto",)
    ),
    "get device without": Case("get db 82:00.0", "not set: the configuration decides\n"),
    "no such guest": Case(
        "set wob auto",
        error=f"virtirq: error: no guest is called 'wob' at {URI}\nhint: see 'virsh list --all'\n",
        exit=2,
    ),
    "no such device": Case(
        "set db 85:00.0 auto",
        error="virtirq: error: db has no passed-through device '85:00.0'"
        " in its persistent definition\nhint: its devices: 0000:82:00.0\n",
        exit=2,
    ),
    "no such directive": Case(
        "set db sometimes",
        error="virtirq: error: 'sometimes' is not a directive\n"
        "hint: a directive is auto, native, emulator, local or a CPU list such as 2-5,^3\n",
        exit=2,
    ),
    "malformed cpuset": Case(
        "set db 2-,4",
        error="virtirq: error: '2-' in '2-,4' is not a CPU, a range of CPUs or ^CPU\n"
        "hint: a directive is auto, native, emulator, local or a CPU list such as 2-5,^3\n",
        exit=2,
    ),
    "no such CPU": Case(
        "set db 2,64",
        error="virtirq: error: the host has no CPU 64\nhint: its CPUs are 0-7\n",
        exit=2,
    ),
    "live of a stopped guest": Case(
        "set db auto --live",
        error="virtirq: error: db is not running\nhint: use --config\n",
        exit=2,
    ),
    "config of a transient guest": Case(
        "unset job --config",
        error="virtirq: error: job is transient: it has no persistent definition\n"
        "hint: use --live\n",
        exit=2,
    ),
    "a recording has no libvirt": Case(
        f"-s {DEMO} set web auto",
        error="virtirq: error: set works on libvirt's guests: leave out -s and --domain\n",
        exit=2,
    ),
    "a recording and a URI": Case(
        f"-s {DEMO} -c {URI} status",
        error=f"virtirq: error: {DEMO} is a recording: libvirt has no part in it\n"
        "hint: leave out either --connect or --sysroot\n",
        exit=2,
    ),
    "recording a recording with a URI": Case(
        f"-s {DEMO} -c {URI} record /nonexistent/x.tar",
        error=f"virtirq: error: {DEMO} is a recording: libvirt has no part in it\n"
        "hint: leave out either --connect or --sysroot\n",
        exit=2,
    ),
    "define absent": Case(
        "define /nonexistent.xml",
        error="virtirq: error: /nonexistent.xml: No such file or directory\n",
        exit=2,
    ),
    "set without libvirt": Case(f"-c {NOWHERE} set web auto", error=UNREACHED, exit=6),
    "status without libvirt": Case(f"-c {NOWHERE} status", error=UNREACHED, exit=6),
    "apply without libvirt": Case(f"apply -c {NOWHERE}", error=UNREACHED, exit=6),
    "record without libvirt": Case(
        f"record -c {NOWHERE} /nonexistent/x.tar", error=UNREACHED, exit=6
    ),
    **{
        f"{line} of another host": Case(f"-c {REMOTE} {line}", error=REFUSED, exit=2)
        for line in ("plan", "apply", "apply --dry-run", "check", "explain web", "restore")
    },
    "record of another host": Case(f"-c {REMOTE} record /nonexistent/x.tar", error=REFUSED, exit=2),
}


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        code = main(shlex.split(line))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, error = capsys.readouterr()
    valid_if_json(out)
    return code, out, error


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_call(case: Case, host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for line in case.before:
        assert run(line, capsys)[0] == 0
    assert run(case.line, capsys) == (case.exit, case.out, case.error)


def test_define_and_dumpxml(host: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "vm.xml"
    devices = NIC.replace("managed='yes'>", "managed='yes' cpuset=\"2-3\">") + VF
    file.write_bytes(
        f"<?xml version='1.0' encoding='ISO-8859-1'?>{domain_xml('vm', devices=devices)}".replace(
            "<memory>", "<description>übrig</description><memory>"
        ).encode("latin-1")
    )
    assert run(f"define {file} --validate", capsys) == (
        0,
        "vm is defined\nvm 0000:82:00.0 (config): 2-3\n",
        "",
    )
    domain = host.lookupByName("vm")
    assert "übrig" in domain.XMLDesc(CONFIG)
    assert ours(domain, CONFIG) == ('<irqs><device address="0000:82:00.0" cpuset="2-3"/></irqs>')
    code, shown, error = run("dumpxml vm --inactive --security-info", capsys)
    assert (code, error) == (0, "")
    assert "type='pci' managed='yes' cpuset='2-3'>" in shown
    assert "urn:virtirq:1" not in shown
    assert "<a:kept/>" in shown
    file.write_text(shown)
    assert run(f"define {file}", capsys)[0] == 0
    assert run("dumpxml vm --inactive --security-info", capsys) == (0, shown, "")
    assert json.loads(run("dumpxml vm -J --inactive", capsys)[1])["xml"] == shown
    assert run("-q dumpxml vm", capsys) == (0, "", "")


def test_define_reads_stdin_and_names_the_file(
    host: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vm.xml"
    file.write_text(domain_xml("vm", devices=NIC.replace("mode", "cpuset='2-' mode")))
    assert run(f"define {file}", capsys) == (
        2,
        "",
        f"virtirq: error: {file}: <hostdev> cpuset:"
        " '2-' is not a CPU, a range of CPUs or ^CPU\n"
        "hint: a directive is auto, native, emulator, local or a CPU list such as 2-5,^3\n",
    )
    file.write_text(domain_xml("vm"))
    with file.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert run("define -", capsys) == (0, "vm is defined\n", "")


def test_metadata_that_is_not_understood(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    newer = "<n:irqs xmlns:n='urn:virtirq:2' cpuset='auto'/>"
    host.defineXML(domain_xml("new", metadata=newer, devices=NIC)).create()
    told = "metadata of urn:virtirq:2 is for another version of virtirq"
    code, shown, _ = run("get new", capsys)
    assert code == 0
    assert shown.endswith(f"  not understood: {told}\n")
    assert run("set new auto", capsys) == (
        2,
        "",
        f"virtirq: error: new: not all of its virtirq metadata (config) is understood: {told}\n"
        "hint: correct it with 'virsh edit', update virtirq, or drop that part by --force\n",
    )
    code, shown, _ = run("check", capsys)
    assert code == 3
    assert f"setting-not-understood: new: {told}" in shown
    assert run("set new auto --force", capsys)[0] == 0
    assert ours(host.lookupByName("new"), LIVE) == '<irqs cpuset="auto"/>'


def test_the_setting_decides(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What `set` wrote is what the plan goes by, and `explain` says where it came from."""
    assert run("set web 82:00.0 3", capsys)[0] == 0
    _, shown, _ = run("explain web", capsys)
    assert "guest web, known from libvirt\n" in shown
    assert "asked: 3, from the device metadata\n" in shown
    data = json.loads(run("status -J", capsys)[1])
    assert [guest["name"] for guest in data["guests"]] == ["job", "web"]
    assert run("plan nobody", capsys)[0] == 2
    for name in (host.lookupByName("web").UUIDString(), str(host.lookupByName("web").ID())):
        (guest,) = json.loads(run(f"plan {name} -J", capsys)[1])["guests"]
        assert guest["name"] == "web"


def test_threads_that_were_seen_are_named(
    host: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = host.lookupByName("web").UUIDString()
    files = {
        "/proc/42/cmdline": f"qemu\0-uuid\0{uuid}",
        "/proc/42/task/42/status": "Uid:\t0\t0\t0\t0\nCapPrm:\t000001ffffffffff\n",
        "/proc/42/task/43/comm": "CPU 0/KVM",
        "/proc/42/task/43/status": "Cpus_allowed_list:\t0",
    }
    made = MadeHost(files=files).live()
    monkeypatch.setattr(sources, "open_fs", lambda _sysroot: made)
    _, shown, _ = run("explain web", capsys)
    assert "  vCPU 0 (thread 43) may run on CPU 0\n" in shown
    assert "  vCPU 1 may run on CPU 4\n" in shown


def test_novas_wish_is_explained(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spec = '<n:extraSpec name="hw:pci_irq_affinity_mask">1</n:extraSpec>'
    nova = (
        '<n:instance xmlns:n="http://openstack.org/xmlns/libvirt/nova/1.1"><n:flavor name="f">'
        f"<n:extraSpecs>{spec}</n:extraSpecs></n:flavor></n:instance>"
    )
    host.createXML(domain_xml("stack", metadata=nova, devices=NIC), 0)
    assert (
        "asked: vcpus 1, from the Nova flavor's hw:pci_irq_affinity_mask\n"
        in run("explain stack", capsys)[1]
    )


def test_without_libvirt_verbs_that_look_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", NOWHERE)
    gap = f"not read: guests: {UNREACHED[len('virtirq: error: ') :].splitlines()[0]} ("
    for verb in ("status", "plan", "check", "apply --dry-run"):
        code, shown, error = run(verb, capsys)
        assert (code, error) == (3 if verb == "check" else 0, ""), verb
        assert gap in shown, verb
    assert "warning: guests-not-read: host: cannot connect" in run("check", capsys)[1]
    for verb in ("plan web", "explain web", "place web", "apply --dry-run web"):
        assert run(verb, capsys) == (6, "", UNREACHED), verb
    assert {"guests"} <= {gap["path"] for gap in json.loads(run("plan -J", capsys)[1])["gaps"]}
    said = "virtirq: error: no process here holds a device for a guest, and libvirt: "
    assert run("apply", capsys) == (6, "", UNREACHED.replace("virtirq: error: ", said))


def test_record_takes_the_running_guests_along(
    host: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    host.lookupByName("web").pinVcpu(0, (False, True) + (False,) * 6)
    file = tmp_path / "host.tar"
    assert run(f"record {file}", capsys)[0] == 0
    guests = json.loads(run(f"-s {file} status -J", capsys)[1])["guests"]
    assert [guest["name"] for guest in guests] == ["guest1", "guest2"]
    assert "vCPU 0 may run on CPU 1\n" in run(f"-s {file} explain guest2", capsys)[1]
    assert run(f"record --keep-names {file}", capsys)[0] == 0
    guests = json.loads(run(f"-s {file} status -J", capsys)[1])["guests"]
    assert [guest["name"] for guest in guests] == ["job", "web"]


def test_record_without_libvirt_is_a_recording_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", NOWHERE)
    code, shown, error = run(f"record {tmp_path / 'host.tar'}", capsys)
    assert (code, error) == (0, "")
    assert "not read: guests: cannot connect to libvirt" in shown
    code, shown, error = run(f"-s {tmp_path / 'host.tar'} status", capsys)
    assert (code, error) == (0, "")
    assert "not read: guests: not all were read when this host was recorded" in shown


def test_another_hosts_guests_can_be_looked_at(
    host: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test driver again, taken for another host."""
    from virtirq.guests.libvirt import connection as libvirt

    monkeypatch.setattr(libvirt, "is_remote", lambda _uri: True)
    assert run("set job auto", capsys)[1] == "job (live): auto, was not set\n"
    assert run("-c test:///default status", capsys) == (
        0,
        "job  2 vCPUs: 0 on 2, 1 on 4\n"
        "  DEVICE        ALIAS   MAC                ELEMENT    SETTING  FROM\n"
        "  0000:84:10.1  -       52:54:00:0a:0b:0c  interface  auto     domain metadata\n"
        "\n"
        "web  2 vCPUs: 0 on 2, 1 on 4\n"
        "  DEVICE        ALIAS   MAC                ELEMENT    SETTING  FROM\n"
        "  0000:84:10.1  -       52:54:00:0a:0b:0c  interface  -        "
        "not set: the configuration decides\n"
        "  0000:82:00.0  -       -                  hostdev    -        "
        "not set: the configuration decides\n"
        "  0000:83:00.0  ua-gpu  -                  hostdev    -        "
        "not set: the configuration decides\n"
        "\n"
        "test:///default is another host: its interrupts are not read here; run virtirq there\n",
        "",
    )
    data = json.loads(run("status -J", capsys)[1])
    assert data["gaps"] == [{"path": "interrupts", "error": f"on another host: {URI}"}]
    code, _, error = run("apply", capsys)
    assert code == 2
    assert "run on another host" in error


def test_a_recording_does_not_import_libvirt() -> None:
    script = (
        "import sys\nfrom virtirq.ui.cli import main\n"
        f"main(['-s', {str(DEMO)!r}, '-q', 'status'])\n"
        "doors = {'libvirt', 'libvirtmod', 'virtirq.guests.libvirt.connection'}\n"
        "print(sorted(doors & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


GAMING = NIC.replace("bus='0x82'", "bus='0x86'")


@pytest.fixture
def gaming(host: Any) -> Any:
    """A guest that is defined and does not run, with a device that no other has."""
    return host.defineXML(domain_xml("gaming", devices=GAMING))


@pytest.mark.parametrize(
    "line",
    [
        *("plan gaming", "apply gaming", "apply -n gaming", "restore -n gaming", "check gaming"),
        *("status gaming", "explain gaming"),
    ],
)
def test_a_guest_that_does_not_run_is_known(
    line: str, gaming: Any, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    code, out, error = run(line, capsys)
    assert (code, out) == (2, "")
    told, hint = error.splitlines()
    assert told == "virtirq: error: gaming is defined but does not run"
    assert hint.startswith("hint: start it: virsh start gaming; ")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "state_dir", lambda _: tmp_path)
    return tmp_path


def test_its_uuid_and_its_device_are_known_too(
    gaming: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "virtirq: error: gaming is defined but does not run\n"
    assert run(f"plan {gaming.UUIDString()}", capsys)[2].startswith(told)
    for name in ("0000:86:00.0", "pci_0000_86_00_0"):
        assert run(f"explain {name}", capsys)[2].startswith(
            f"virtirq: error: {name} is of gaming, which is defined but does not run\n"
        )
    assert run("plan gamin", capsys)[2].startswith("virtirq: error: no guest is called 'gamin'\n")


def test_status_all_shows_guests_that_do_not_run(
    gaming: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("set gaming 86:00.0 3", capsys)[0] == 0
    code, out, error = run("status --all gaming", capsys)
    assert (code, error) == (0, "")
    assert (
        "gaming  is defined but does not run, 2 vCPUs on CPUs 2,4\n"
        "  0000:86:00.0  3 (device metadata)\n"
    ) in out.replace(" (node 0)", "")
    assert "web" not in out
    assert "gaming" not in run("status", capsys)[1]
    told = json.loads(run("status --all -J", capsys)[1])
    assert [each["name"] for each in told["defined"]] == ["db", "gaming"]
    (device,) = told["defined"][1]["devices"]
    assert (device["address"], device["directive"]) == ("0000:86:00.0", "3")
    assert device["directive_from"] == "device metadata"
    assert "defined" not in json.loads(run("status -J", capsys)[1])
    assert run("status --all --summary 'gam*'", capsys)[1].count("does not run") == 1


def test_hints_go_to_the_same_libvirt(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host.defineXML(domain_xml("my vm", devices=NIC)).create()
    shown = run(f"-c {URI} set 'my vm' auto --live", capsys)[1]
    assert f"hint: run 'virtirq -c {URI} apply 'my vm'' to move its interrupts now" in shown


@pytest.mark.parametrize(
    ("source", "domain_id", "done", "told"),
    [
        ("libvirt", 3, ("live", "config"), "hint: run 'virtirq apply web', unless a daemon runs"),
        ("libvirt", 3, ("config",), "it counts from the guest's next start on"),
        ("libvirt", None, ("config",), "web does not run: it counts from its next start on"),
        ("libvirt", None, (), "hint: 'virtirq place web --apply' pins it so, through libvirt"),
    ],
)
def test_no_hint_of_place_leads_into_an_error(
    source: str, domain_id: int | None, done: tuple[str, ...], told: str
) -> None:
    fs = sources.open_fs(DEMO)
    snapshot = cycle.observe(fs, sources.load_guests(fs, ()))
    placement = place.propose(snapshot, "web", None)
    guest = replace(placement.guest, source=source, domain_id=domain_id)
    args = Namespace(connect=None, node=None, cpus=None)
    shown = place.shown(args, replace(placement, guest=guest), (), done, ())
    assert shown.document.plain().splitlines()[-1] == told
