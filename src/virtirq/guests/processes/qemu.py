"""QEMU's command line: the guest's name and UUID, and the PCI functions that it is given.

An option is ``-option value`` or ``--option value``, never ``-option=value`` (system/vl.c,
lookup_opt()). A value is a list of ``key=value``, in which ``,,`` is a comma (util/qemu-option.c,
get_opt_name_value()), or a JSON object where it begins with a brace. QEMU's JSON has strings in
single quotes, too (qobject/json-lexer.c).

PCI functions come by ``-device vfio-pci`` (host= or sysfsdev=, which wins: hw/vfio/pci.c) and by
QEMU's own NVMe driver, which uses VFIO too (block/nvme.c: ``nvme://ADDRESS/NAMESPACE`` and
driver=nvme,device=ADDRESS). What a ``-readconfig`` file holds cannot be seen here.

Names: libvirt passes ``-name guest=NAME,debug-threads=on`` (src/qemu/qemu_command.c). KubeVirt runs
a libvirt in each pod, which names the guest NAMESPACE_NAME (pkg/virt-launcher/virtwrap/util/
libvirt_helper.go, DomainFromNamespaceName()); neither part can hold an underscore, and it is shown
as NAMESPACE/NAME. Proxmox's QEMU takes ``-id VMID`` (src/PVE/QemuServer.pm, config_to_command()),
by which Proxmox calls the guest everywhere: two of its guests may share a name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from virtirq.guests.processes.values import (
    CommandLine,
    host_address,
    name_of,
    program_of,
    sysfs_address,
    uuid_of,
)
from virtirq.model import PciAddress
from virtirq.values import pattern

_OPTIONS: Final = frozenset({"device", "name", "uuid", "smbios", "id", "set", "drive", "blockdev"})
_DRIVERS: Final = frozenset({"vfio-pci", "vfio-pci-nohotplug"})
# They use NVMe controllers by VFIO, too, and have no vCPUs.
_TOOLS: Final = ("qemu-storage-daemon", "qemu-img", "qemu-io", "qemu-nbd")
_NVME: Final = "nvme://"
_KEY: Final = pattern("[^=,]*")
_VALUE: Final = pattern("(?:[^,]+|,,)*")
_VMID: Final = pattern("[0-9]{1,9}", re.ASCII)
_STRING: Final = pattern(r"""'((?:[^'\\]|\\.)*)'|"(?:[^"\\]|\\.)*\"""")
_ESCAPE: Final = pattern(r'\\.|"')
_ESCAPED: Final = {"\\'": "'", '"': '\\"'}


def read_qemu(words: Sequence[str]) -> CommandLine:
    """What QEMU, or one of its tools, was told."""
    name: dict[str, str] = {}
    devices: list[dict[str, str]] = []
    by_id: dict[str, dict[str, str]] = {}
    found: list[PciAddress | None] = []
    vmid, uuid, product = "", None, None
    for option, value in options(words, _OPTIONS):
        match option:
            case "device":
                devices.append(device := _given(value, "driver"))
                if "id" in device:
                    by_id.setdefault(device["id"], device)
            case "name":
                name |= pairs(value, "guest")  # the option may be there twice: system/vl.c
            case "id" if _VMID.fullmatch(value):
                vmid = value
            case "uuid":
                uuid = uuid_of(value)
            case "smbios":
                product = uuid_of(pairs(value).get("uuid", "")) or product
            case "set":
                _set(by_id, value)
            case "drive" | "blockdev":
                found += _nvme(value)
    found = [*map(_held, devices), *found]
    return CommandLine(
        "" if program_of(words).startswith(_TOOLS) else "qemu",
        name=vmid or name_of(_in_cluster(name.get("guest", ""), words)),
        uuid=uuid or product,  # Proxmox gives the UUID as the product's
        devices=tuple(dict.fromkeys(filter(None, found))),
    )


def device_models(words: Sequence[str]) -> Iterator[str]:
    """What each ``-device`` is, PCI function of the host or not."""
    for _, value in options(words, ("device",)):
        yield _given(value, "driver").get("driver", "")


def pairs(text: str, implied: str = "") -> dict[str, str]:
    """``key=value,…``; a first value without a key is that of `implied`, another is a flag."""
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        key = _KEY.match(text, place)
        assert key is not None  # noqa: S101 - it matches nothing, too
        end = key.end()
        if text[end : end + 1] == "=":
            name, start = key[0], end + 1
        elif place == 0 and implied:
            name, start = implied, 0
        else:
            found[key[0]] = "on"
            place = end + 1
            continue
        value = _VALUE.match(text, start)
        assert value is not None  # noqa: S101
        found[name] = value[0].replace(",,", ",")
        place = value.end() + 1
    return found


def options(words: Sequence[str], wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    """The options of these names, with their values."""
    for place, word in enumerate(words[1:-1], start=1):
        if word.startswith("-") and (option := word.removeprefix("-").removeprefix("-")) in wanted:
            yield option, words[place + 1]


def _given(value: str, implied: str = "") -> dict[str, str]:
    """The text values of a list or a JSON object."""
    if not value.startswith("{"):
        return pairs(value, implied)
    told = _json(value)
    return {key: each for key, each in told.items() if isinstance(each, str)}


def _json(text: str) -> Mapping[str, Any]:
    import json

    try:
        told = json.loads(_STRING.sub(_in_double_quotes, text) if "'" in text else text)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _in_double_quotes(string: re.Match[str]) -> str:
    """A string of QEMU's JSON as RFC 8259 writes it."""
    inner: str | None = string[1]
    if inner is None:
        return string[0]
    said = _ESCAPE.sub(lambda each: _ESCAPED.get(each[0], each[0]), inner)
    return f'"{said}"'


def _set(devices: Mapping[str, dict[str, str]], value: str) -> None:
    """``-set device.ID.KEY=VALUE`` changes a device that stands before it.

    Of several with one id it is the first (util/qemu-option.c, qemu_opts_find()), and QEMU refuses
    to start with them.
    """
    where, _, text = value.partition("=")
    match where.split("."):
        case ["device", name, key] if name in devices:
            devices[name][key] = text


def _held(device: Mapping[str, str]) -> PciAddress | None:
    if device.get("driver") not in _DRIVERS:
        return None
    path = device.get("sysfsdev")
    return host_address(device.get("host", "")) if path is None else sysfs_address(path)


def _nvme(value: str) -> Iterator[PciAddress | None]:
    """NVMe controllers in a block device, however deep it is nested."""
    if value.startswith("{"):
        yield from _nvme_in(_json(value))
        return
    told = pairs(value)
    for key, each in told.items():
        if each == "nvme" and (key == "driver" or key.endswith(".driver")):
            yield host_address(told.get(f"{key.removesuffix('driver')}device", ""))
        elif each.startswith(_NVME):
            yield host_address(each.removeprefix(_NVME).partition("/")[0])
        elif each.startswith("json:"):
            yield from _nvme_in(_json(each.removeprefix("json:")))


def _nvme_in(told: Mapping[str, Any]) -> Iterator[PciAddress | None]:
    todo: list[Any] = [told]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            if each.get("driver") == "nvme":
                yield host_address(str(each.get("device", "")))
            name = each.get("filename")
            if isinstance(name, str) and name.startswith(_NVME):
                yield host_address(name.removeprefix(_NVME).partition("/")[0])
            todo += each.values()
        elif isinstance(each, list):
            todo += each


def _in_cluster(name: str, words: Sequence[str]) -> str:
    """KubeVirt's name for the guest, where it is KubeVirt's: its paths and SMBIOS say so."""
    if name.count("_") == 1 and any("kubevirt" in word or "KubeVirt" in word for word in words):
        return name.replace("_", "/")
    return name
