"""What `make install` puts where, and that the example configuration tells the truth."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.needs import need_program
from virtirq.policy.config import Config, Rule, parse_config

COMPLETIONS = {
    "usr/share/bash-completion/completions/virtirq",
    "usr/share/zsh/site-functions/_virtirq",
    "usr/share/fish/vendor_completions.d/virtirq.fish",
}
MANUAL = {
    "usr/share/man/man8/virtirq.8",
    "usr/share/man/man5/virtirq.toml.5",
    "usr/share/man/man7/virtirq-findings.7",
}
UNIT = "usr/lib/systemd/system/virtirq.service"


def make(repository: Path, goal: str, destination: Path, *settings: str) -> str:
    """What it says on standard error."""
    need_program("make")
    words = ["make", "-s", "-C", str(repository), goal, f"DESTDIR={destination}", "PREFIX=/usr"]
    done = subprocess.run(
        [*words, *settings], capture_output=True, text=True, check=False, umask=0o077
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def files(destination: Path) -> set[str]:
    return {str(each.relative_to(destination)) for each in destination.rglob("*") if each.is_file()}


def expected(repository: Path) -> set[str]:
    docs = {"README.md", "CHANGELOG.md", *(each.name for each in repository.glob("docs/*.*"))}
    return {
        UNIT,
        *MANUAL,
        "usr/share/doc/virtirq/examples/virtirq.toml",
        "usr/share/virtirq/prometheus/virtirq.rules.yml",
        "usr/share/virtirq/grafana/virtirq.json",
        *(
            f"usr/share/virtirq/{each.relative_to(repository / 'packaging')}"
            for name in ("ansible", "kubevirt")
            for each in (repository / "packaging" / name).rglob("*")
            if each.is_file()
        ),
        *(f"usr/share/doc/virtirq/{name}" for name in docs),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    destination = tmp_path_factory.mktemp("made")
    make(repository, "install", destination, "VIRTIRQ=")
    return destination


@pytest.fixture(scope="module")
def unit(made: Path) -> dict[str, list[str]]:
    """Setting to its values."""
    found: dict[str, list[str]] = {}
    for line in (made / UNIT).read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_exactly_these_files_are_installed(made: Path, repository: Path) -> None:
    assert files(made) == expected(repository)


def prose(page: Path) -> str:
    """Without its blocks, in which the name of an interrupt may look like a link."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_their_links_lead_somewhere(made: Path) -> None:
    docs = made / "usr/share/doc/virtirq"
    links = [
        (file.name, link)
        for file in docs.glob("*.md")
        for link in re.findall(r"\]\(([^)#]+)", prose(file))
        if "://" not in link
    ]
    assert len(links) > 10
    for _, link in links:
        there = made / link.lstrip("/") if link.startswith("/") else docs / link
        assert there.is_file(), links


def test_all_may_read_them(made: Path) -> None:
    for each in made.rglob("*"):
        assert each.stat().st_mode & 0o7777 == (0o755 if each.is_dir() else 0o644), each


def test_completions_come_from_the_program(tmp_path: Path, repository: Path) -> None:
    program = Path(sys.executable).parent / "virtirq"
    make(repository, "install", tmp_path, f"VIRTIRQ={program}")
    assert files(tmp_path) == expected(repository) | COMPLETIONS
    for name in COMPLETIONS:
        assert "dry-run" in (tmp_path / name).read_text()


def test_what_could_not_be_installed_is_said(tmp_path: Path, repository: Path) -> None:
    program = Path(sys.executable).parent / "virtirq"
    assert make(repository, "install", tmp_path / "all", f"VIRTIRQ={program}") == ""
    told = make(repository, "install", tmp_path / "some", "VIRTIRQ=")
    assert told.startswith("not installed: shell completions, as there is no virtirq to print them")
    # Not for a package, whose program comes with it.
    prefix = tmp_path / "own"
    told = make(repository, "install", Path(), f"VIRTIRQ={program}", f"PREFIX={prefix}", "DESTDIR=")
    assert told.startswith("not installed: the program itself: the unit starts")
    assert f"{prefix}/bin/virtirq" in told
    (prefix / "bin").mkdir()
    (prefix / "bin/virtirq").symlink_to(program)
    assert not make(
        repository, "install", Path(), f"VIRTIRQ={program}", f"PREFIX={prefix}", "DESTDIR="
    )


def test_uninstall_leaves_what_others_put_there(tmp_path: Path, repository: Path) -> None:
    make(repository, "install", tmp_path, f"VIRTIRQ={Path(sys.executable).parent / 'virtirq'}")
    theirs = {"etc/virtirq/virtirq.toml", "usr/lib/systemd/system/other.service"}
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    make(repository, "uninstall", tmp_path)
    assert files(tmp_path) == theirs
    assert not (tmp_path / "usr/share/virtirq").exists()
    assert not (tmp_path / "usr/share/doc/virtirq").exists()


def test_the_unit_starts_the_program_from_where_it_is(tmp_path: Path, repository: Path) -> None:
    make(repository, "install", tmp_path, "VIRTIRQ=", "BINDIR=/opt/virtirq/bin")
    text = (tmp_path / UNIT).read_text()
    assert "ExecStart=/opt/virtirq/bin/virtirq daemon\n" in text
    assert not re.search(r"@\w+dir@", text)


def test_the_units_documentation_is_installed(made: Path, unit: dict[str, list[str]]) -> None:
    page, place = unit["Documentation"][0].split()
    assert page == "man:virtirq(8)"
    assert "usr/share/man/man8/virtirq.8" in files(made)
    assert (made / place.removeprefix("file:/")).is_file()


def test_what_the_daemon_relies_on(unit: dict[str, list[str]]) -> None:
    wanted = {
        "Type": ["notify"],
        "ExecStart": ["/usr/bin/virtirq daemon"],
        "ExecReload": ["/bin/kill -HUP $MAINPID"],
        "RuntimeDirectory": ["virtirq"],
        "RuntimeDirectoryPreserve": ["yes"],  # the journal of what to put back
        "CapabilityBoundingSet": [""],
    }
    assert {name: unit.get(name) for name in wanted} == wanted


def test_nothing_keeps_the_daemon_from_its_work(unit: dict[str, list[str]]) -> None:
    """tests/full/test_unit.py sees it; this tells sooner."""
    traps = {"ProtectKernelTunables", "ProcSubset", "ProtectProc", "PrivateNetwork", "User"}
    assert traps & set(unit) == set()
    assert {"Requires", "BindsTo", "Requisite", "PartOf"} & set(unit) == set()


def test_systemd_here_has_no_complaint(tmp_path: Path, repository: Path) -> None:
    """It may be older than the lab's, and know less."""
    need_program("systemd-analyze")
    program = tmp_path / "bin/virtirq"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    make(repository, "install", tmp_path / "made", "VIRTIRQ=", f"BINDIR={program.parent}")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "made" / UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "virtirq" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def manifest(repository: Path) -> str:
    return (repository / "packaging/kubevirt/base/virtirq.yaml").read_text()


def test_every_volume_of_the_manifest_is_mounted(manifest: str) -> None:
    mounts, volumes = manifest.split("      volumes:\n")
    mounts = mounts.split("          volumeMounts:\n")[1]
    names = re.compile(r"^ *- name: (\w+)$", re.MULTILINE)
    assert sorted(names.findall(mounts)) == sorted(names.findall(volumes))
    assert "/run/virtirq" in mounts  # the journal of what to put back


def test_every_privilege_of_the_manifest_has_its_why(manifest: str) -> None:
    lines = [each.strip() for each in manifest.splitlines()]
    capabilities = {"SYS_ADMIN", "SETPCAP", "SYS_PTRACE", "DAC_READ_SEARCH"}
    start, end = lines.index("add:"), lines.index("seccompProfile:")
    added = {each.removeprefix("- ") for each in lines[start:end] if each.startswith("- ")}
    assert added == capabilities
    mounts = lines[lines.index("volumeMounts:") : lines.index("volumes:")]
    asked = [f"- {each}" for each in sorted(capabilities)]
    asked += [each for each in mounts if each.startswith("- name: ")]
    asked += ["hostPID: true", "runAsUser: 0", "command:", "appArmorProfile:", "seLinuxOptions:"]
    for each in asked:
        where = lines.index(each, start) if each.startswith("- name: ") else lines.index(each)
        assert lines[where - 1].startswith("# "), each


def test_the_manifest_gives_up_what_only_the_start_takes(manifest: str) -> None:
    assert "privileged: true" not in manifest
    command = " ".join(re.sub("#.*", "", manifest).split())
    assert (
        "mount -o remount,bind,rw /proc/irq &&"
        " exec setpriv --bounding-set=-all,+sys_ptrace,+dac_read_search --no-new-privs"
        " virtirq daemon"
    ) in command


def uncommented(text: str) -> str:
    """With the settings that are commented out in force; comments proper begin with a space."""
    return re.sub(r"^#(?=[\w\[])", "", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def example(repository: Path) -> str:
    return (repository / "packaging/virtirq.toml").read_text()


def test_the_example_changes_nothing_as_it_is(example: str) -> None:
    assert parse_config([("virtirq.toml", example)]) == Config()


def test_the_example_shows_the_defaults(example: str) -> None:
    shown = parse_config([("virtirq.toml", uncommented(example))])
    assert len(shown.rules) == 2
    # `spread` has no value that stands for its default.
    apart = {"spread": None, "rules": (), "default_from": Config().default_from}
    assert dataclasses.replace(shown, **apart) == Config()  # type: ignore[arg-type]


def test_the_example_has_every_key(example: str) -> None:
    table = tomllib.loads(uncommented(example))
    assert set(table) == keys(Config())
    for name, value in table.items():
        if isinstance(value, dict):
            assert set(value) == keys(getattr(Config(), name)), name
    assert {key for rule in table["rule"] for key in rule} == keys(Rule)


def keys(settings: object) -> set[str]:
    assert dataclasses.is_dataclass(settings)
    found = [each.metadata.get("key", each.name) for each in dataclasses.fields(settings)]
    return {key for key in found if key is not None}


def test_each_setting_has_its_why(example: str) -> None:
    paragraphs = [each.splitlines() for each in example.strip().split("\n\n")]
    settings = [each for each in paragraphs if re.match(r"#?[\w\[]", each[-1])]
    assert settings
    for lines in settings:
        assert lines[0].startswith("# "), lines


def test_the_roles_variables_are_those_that_are_told_of(repository: Path) -> None:
    role = repository / "packaging/ansible/roles/virtirq"
    defaults = set(re.findall(r"^(virtirq_\w+):", (role / "defaults/main.yml").read_text(), re.M))
    assert defaults
    specified = (role / "meta/argument_specs.yml").read_text()
    assert set(re.findall(r"^ +(virtirq_\w+):$", specified, re.M)) == defaults
    page = (repository / "docs/ansible.md").read_text()
    assert set(re.findall(r"^\| `(virtirq_\w+)`", page, re.M)) == defaults
