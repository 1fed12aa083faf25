"""What docs/upstream.md proposes for libvirt's schemas, in those of Debian's libvirt."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from lab.full import BuildError, trees
from tests.conftest import REPOSITORY
from tests.needs import not_run

SCHEMAS: Final = "usr/share/libvirt/schemas"
# A tree that is unpacked, and not set up, has no links to what was merged into /usr.
MERGED: Final = 'ln -s usr/lib usr/lib64 "$1"'
DOMAIN: Final = """\
<domain type='kvm'>
  <name>web</name><memory>1048576</memory><os><type>hvm</type></os>
  <devices>{}</devices>
</domain>
"""
ADDRESS: Final = "<address domain='0x0000' bus='0x82' slot='0x10' function='0x0'/>"
OF_PCI: Final = ADDRESS.replace("<address", "<address type='pci'")
HOSTDEV: Final = f"<hostdev mode='subsystem' type='pci'{{}}><source>{ADDRESS}</source></hostdev>"
OF_DRIVER: Final = {
    "domain": DOMAIN.format(
        "<hostdev mode='subsystem' type='pci' managed='yes'><driver name='vfio'{}/>"
        f"<source>{ADDRESS}</source></hostdev>"
        "<interface type='hostdev'><driver name='vfio'{}/>"
        f"<source>{OF_PCI}</source></interface>"
    ),
    "network": (
        "<network><name>vfs</name><forward mode='hostdev'><driver name='vfio'{}/>"
        "<pf dev='eth0'/></forward></network>"
    ),
    "networkport": (
        "<networkport><uuid>d2e9ce4e-9d3b-4a2a-8f0e-0f2a3a0a5f17</uuid><owner><name>web</name>"
        "<uuid>d2e9ce4e-9d3b-4a2a-8f0e-0f2a3a0a5f18</uuid></owner>"
        "<mac address='52:54:00:0a:0b:0c'/>"
        f"<plug type='hostdev-pci'><driver name='vfio'{{}}/>{ADDRESS}</plug></networkport>"
    ),
}
"""What one definition of the schemas is in, by schema; `{}` is where the attribute stands."""
SOME: Final = ("auto", "native", "4", "2-5,^3")
NONE: Final = ("", "none", "2-", "4 5", "0x3")

Valid = Callable[[str, str], bool]


def fragments() -> dict[str, str]:
    """Each block of the page that says where it belongs, without that line."""
    page = (REPOSITORY / "docs/upstream.md").read_text()
    return dict(re.findall(r"```xml\n<!-- ([^\n]+) -->\n(.*?)```", page, re.DOTALL))


@pytest.fixture(scope="module")
def tree() -> Path:
    try:
        return trees.tree("schemas", "extract", ("libvirt-common", "libxml2-utils"), [MERGED])
    except BuildError as error:
        not_run(f"libvirt's schemas: {error}")


@pytest.fixture(scope="module")
def before(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Valid:
    return validator(tree, tree / SCHEMAS, tmp_path_factory.mktemp("before"))


@pytest.fixture(scope="module")
def after(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Valid:
    """With what the page proposes, both spellings at once."""
    schemas = tmp_path_factory.mktemp("after") / "schemas"
    shutil.copytree(tree / SCHEMAS, schemas)
    for where, text in fragments().items():
        file, _, define = where.partition(": ")
        path = schemas / file
        marks = {
            "": "</grammar>",
            "hostdevDriver": '<define name="hostdevDriver">\n    <element name="driver">\n',
            "hostdevsubsyspci": '<define name="hostdevsubsyspci">\n',
        }
        schema, mark = path.read_text(), marks[define]
        assert schema.count(mark) == 1
        new = mark + text if define else text + mark
        path.write_text(schema.replace(mark, new))
    return validator(tree, schemas, schemas.parent)


def validator(tree: Path, schemas: Path, work: Path) -> Valid:
    loader, *_ = tree.glob("usr/lib*/ld-linux-*")
    libraries = ":".join(str(each.parent) for each in tree.glob("usr/lib/*/libxml2.so*"))
    program = [str(loader), "--library-path", libraries, str(tree / "usr/bin/xmllint")]

    def valid(schema: str, document: str) -> bool:
        file = work / "document.xml"
        file.write_text(document)
        done = subprocess.run(
            [*program, "--noout", "--relaxng", f"{schemas}/{schema}.rng", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 3), done.stderr  # 3: it is not valid
        return done.returncode == 0

    return valid


def test_the_page_says_where_each_fragment_goes() -> None:
    assert sorted(fragments()) == [
        "basictypes.rng",
        "basictypes.rng: hostdevDriver",
        "domaincommon.rng: hostdevsubsyspci",
    ]


@pytest.mark.parametrize("schema", OF_DRIVER)
def test_one_definition_covers_whatever_has_the_driver(
    schema: str, before: Valid, after: Valid
) -> None:
    document = OF_DRIVER[schema].replace("{}", "{0}")
    assert before(schema, document.format(""))
    assert after(schema, document.format(""))
    assert not before(schema, document.format(" irqCpuset='auto'"))
    for each in SOME:
        assert after(schema, document.format(f" irqCpuset='{each}'"))
    for each in NONE:
        assert not after(schema, document.format(f" irqCpuset='{each}'"))


def test_the_rfcs_attribute(before: Valid, after: Valid) -> None:
    document = DOMAIN.format(HOSTDEV)
    assert before("domain", document.format(""))
    assert not before("domain", document.format(" cpuset='auto'"))
    for each in SOME:
        assert after("domain", document.format(f" cpuset='{each}'"))
    for each in NONE:
        assert not after("domain", document.format(f" cpuset='{each}'"))


def test_what_is_no_function_takes_neither(after: Valid) -> None:
    usb = (
        "<hostdev mode='subsystem' type='usb'{}><source><vendor id='0x046d'/>"
        "<product id='0xc52b'/></source></hostdev>"
    )
    assert after("domain", DOMAIN.format(usb.format("")))
    assert not after("domain", DOMAIN.format(usb.format(" cpuset='auto'")))
