"""What the command line of a virtual machine monitor says of its guest: words in, values out.

Each program has its own syntax, and only that is understood of it. A word that makes no sense is
passed over: the program itself would have refused it, so it is not the program that it looks like.

=================  ============================================  =============================
program            PCI functions                                 name and UUID
=================  ============================================  =============================
QEMU               see `vmm_qemu`                                see `vmm_qemu`
cloud-hypervisor   ``--device path=SYSFS[,…] [path=SYSFS…]``     ``--platform system_uuid=``
crosvm             ``--vfio SYSFS[,…]``, ``--vfio=path=SYSFS``   ``--name``
Firecracker        none: it passes no device through             ``--id``
kvmtool            ``--vfio-pci ADDRESS``                        ``--name``
StratoVirt         as QEMU: ``-device vfio-pci,host=ADDRESS``    ``-name``, ``-uuid``
OpenVMM            ``--vfio host=ADDRESS,port=…``                none
alioth             ``--vfio-group path=GROUP,devices=…``         none
=================  ============================================  =============================

cloud-hypervisor: cloud-hypervisor/src/main.rs and vmm/src/config.rs (DeviceConfig::parse(),
PlatformConfig::parse()), option_parser/src/lib.rs. crosvm: src/crosvm/cmdline.rs (RunCommand),
src/crosvm/sys/linux/config.rs (VfioOption), src/main.rs (prepare_argh_args()). Firecracker:
src/firecracker/src/main.rs. kvmtool: builtin-run.c, vfio/core.c (vfio_device_pci_parser()).
StratoVirt: machine_manager/src/cmdline.rs, vfio/src/vfio_pci.rs (VfioConfig). OpenVMM:
openvmm/openvmm_entry/src/cli_args.rs. alioth: alioth-cli/src/boot/boot.rs (BootArgs),
alioth/src/vfio/vfio.rs (VfioGroupSpec); which function ``--vfio-cdev path=/dev/vfio/devices/vfioN``
is, its descriptor tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from virtirq.guests.processes.qemu import read_qemu
from virtirq.guests.processes.values import (
    CommandLine,
    host_address,
    name_of,
    program_of,
    sysfs_address,
    uuid_of,
)
from virtirq.model import PciAddress
from virtirq.values import replace


def read_command_line(words: Sequence[str], executed: str = "", comm: str = "") -> CommandLine:
    """What a program that was started with these words says of its guest.

    `executed` is the program that runs (``/proc/PID/exe``), empty where that is hidden. It decides:
    whoever starts a program chooses the first word (microvm.nix has ``microvm@NAME`` there, and
    NAME may be another program's). The first word does where that is no program known here, as an
    interpreter or a loader is none, and after it `comm`, which may be cut short.
    """
    for program in (executed, program_of(words), comm):
        told = _read(program_of([program]), [program, *words[1:]])
        if told != CommandLine():
            return told
    return CommandLine()


def _read(program: str, words: Sequence[str]) -> CommandLine:
    if "qemu" in program or program == "kvm":
        return read_qemu(words)
    if "cloud-hyp" in program:
        return _cloud_hypervisor(words)
    if "crosvm" in program:
        return _crosvm(words)
    if "firecracker" in program:
        return CommandLine("firecracker", name=_last(words, "id"))
    if "lkvm" in program or program == "vm":
        return _kvmtool(words)
    if "stratovirt" in program:
        return replace(read_qemu(words), vmm="stratovirt")
    if "openvmm" in program:
        return _openvmm(words)
    if "alioth" in program and {"boot", "run"}.intersection(words):
        return _alioth(words)
    return CommandLine()


def _cloud_hypervisor(words: Sequence[str]) -> CommandLine:
    devices = [_bracketed(value).get("path", "") for value in _many(words, "device")]
    platform = _bracketed(_last_text(words, "platform"))
    uuid = uuid_of(platform.get("system_uuid") or platform.get("uuid", ""))
    return CommandLine("cloud-hypervisor", uuid=uuid, devices=_of_sysfs(devices))


def _crosvm(words: Sequence[str]) -> CommandLine:
    # The key of the first part may be left out: serde_keyvalue/src/key_values.rs.
    paths = []
    for value in _each(words, "vfio"):
        first, *more = value.split(",")
        named = dict(part.partition("=")[::2] for part in more)
        if "=" in first and not first.startswith("/"):
            named |= [first.partition("=")[::2]]
            first = ""
        paths.append((named.get("path") or first).strip("\"'"))
    if "run" not in words:
        return CommandLine()
    return CommandLine("crosvm", name=_last(words, "name"), devices=_of_sysfs(paths))


def _kvmtool(words: Sequence[str]) -> CommandLine:
    devices = _of_hosts(value.partition(",")[0] for value in _each(words, "vfio-pci"))
    if "run" not in words[1:2]:
        return CommandLine()  # a tool of another name, or lkvm doing something else
    return CommandLine("kvmtool", name=_last(words, "name"), devices=devices)


def _openvmm(words: Sequence[str]) -> CommandLine:
    hosts = (_bracketed(value).get("host", "") for value in _each(words, "vfio"))
    return CommandLine("openvmm", devices=_of_hosts(hosts))


def _alioth(words: Sequence[str]) -> CommandLine:
    # A list is a named object: ``devices=id_gpus -o id_gpus,0000:06:0d.0,0000:06:0d.1``.
    objects = dict(value.partition(",")[::2] for value in _each(words, "object", "-o"))
    hosts = []
    for value in _each(words, "vfio-group"):
        named = _bracketed(value).get("devices", "")
        hosts += objects.get(named, named).split(",")
    return CommandLine("alioth", devices=_of_hosts(hosts))


def _each(words: Sequence[str], option: str, short: str = "") -> Iterator[str]:
    """Every value of a long option, as ``--option value`` or ``--option=value``."""
    long, attached = f"--{option}", f"--{option}="
    for place, word in enumerate(words):
        if word in (long, short or long) and place + 1 < len(words):
            yield words[place + 1]
        elif word.startswith(attached):
            yield word[len(attached) :]


def _many(words: Sequence[str], option: str) -> Iterator[str]:
    """As `_each`, for an option that takes all words up to the next option."""
    long, attached, mine = f"--{option}", f"--{option}=", False
    for word in words:
        if word.startswith("-"):
            mine = word == long or word.startswith(attached)
            if word.startswith(attached):
                yield word[len(attached) :]
        elif mine:
            yield word


def _last_text(words: Sequence[str], option: str) -> str:
    return next(reversed(list(_each(words, option))), "")


def _last(words: Sequence[str], option: str) -> str | None:
    return name_of(_last_text(words, option))


def _bracketed(text: str) -> dict[str, str]:
    """``key=value,…`` where commas in double quotes and in brackets do not count.

    cloud-hypervisor: option_parser/src/lib.rs, split_commas().
    """
    found: dict[str, str] = {}
    depth, quoted, start = 0, False, 0
    for place, character in enumerate(f"{text},"):
        if character == '"':
            quoted = not quoted
        elif not quoted and character in "[]":
            depth += 1 if character == "[" else -1
        elif character == "," and not quoted and not depth:
            key, _, value = text[start:place].partition("=")
            found[key] = value.replace('"', "").strip()
            start = place + 1
    return found


def _of_hosts(hosts: Iterable[str]) -> tuple[PciAddress, ...]:
    return tuple(dict.fromkeys(filter(None, map(host_address, hosts))))


def _of_sysfs(paths: Sequence[str]) -> tuple[PciAddress, ...]:
    return tuple(dict.fromkeys(filter(None, map(sysfs_address, paths))))
