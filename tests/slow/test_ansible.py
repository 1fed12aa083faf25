"""The role by a real ansible-core, over real sshds, on two fresh hosts with systemd and apt.

On each runs what looks like a guest with a NIC: the daemon that is rolled out finds it, and pins
its interrupts. They are files: how the package treats those of a kernel is test_deb.py's.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from lab import boxes, pypi
from lab.full import BuildError
from lab.kernel import LabUnavailable
from release import deb, pyz
from tests.conftest import REPOSITORY
from tests.needs import need_program, not_run
from tests.slow import standin

PLAYBOOKS: Final = REPOSITORY / "packaging/ansible"
HOSTS: Final = ("one", "two")
CONFIG: Final = "/etc/virtirq/virtirq.toml"
FOUND: Final = dict.fromkeys(HOSTS, standin.FOUND)
# All that the role could touch.
FILES: Final = f"""\
{standin.AFFINITIES}
find /etc /usr /var/cache /run/virtirq -newer /etc/hostname -type f \
    ! -path '*/__pycache__/*' ! -path /etc/ld.so.cache ! -path '/var/cache/debconf/*' \
    -exec md5sum {{}} + 2> /dev/null | sort -k 2
"""
SERVICE: Final = "systemctl show -P ActiveState,UnitFileState,MainPID virtirq | paste -sd ' '"
WELL: Final = {"default": "auto", "rule": [{"class": "nvme", "directive": "local"}]}
WRITTEN: Final = """\
# Ansible managed
default = "auto"

[[rule]]
class = "nvme"
directive = "local"
"""


class Done:
    """What a playbook came to."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        recap = re.findall(r"^(\w+) +: (ok=.*)$", self.text.partition("PLAY RECAP")[2], re.M)
        self.hosts = {
            host: {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", counts)}
            for host, counts in recap
        }

    def changed(self) -> dict[str, int]:
        assert self.code == 0, self.text
        return {host: counts["changed"] for host, counts in self.hosts.items()}


class Fleet:
    def __init__(self, hosts: list[boxes.Box], work: Path) -> None:
        self.hosts = {each.name: each for each in hosts}
        self._ansible = ansible()
        self._work = work
        config = boxes.ssh_config(hosts, work)
        (work / "inventory").write_text("\n".join(["[hypervisors]", *self.hosts, ""]))
        self._settings = {
            "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
            "ANSIBLE_HOME": str(work / "home"),
            "ANSIBLE_SSH_ARGS": f"-F {config} -o ControlMaster=auto -o ControlPersist=20s",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(work),
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        }

    def play(self, book: str, *options: str, **variables: Any) -> Done:
        words = [*self._ansible.words("ansible-playbook"), "-i", str(self._work / "inventory")]
        words += [*options, "-e", json.dumps(variables), str(PLAYBOOKS / book)]
        return Done(
            subprocess.run(
                words,
                env=self._ansible.environment() | self._settings,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        )

    def pinned(self) -> dict[str, str]:
        """Where each host's three vectors are to be once they are pinned."""
        return dict.fromkeys(self.hosts, standin.pinned())

    def everywhere(self, command: str) -> dict[str, str]:
        return {name: each.run(command, check=False) for name, each in self.hosts.items()}


def ansible() -> pypi.Programs:
    try:
        return pypi.programs("ansible", "ansible-core>=2.15", "ansible-lint")
    except LabUnavailable as error:
        not_run(f"the role: {error}")


@pytest.fixture(scope="module")
def package() -> str:
    try:
        (made,) = deb.packages().glob("*.deb")
    except BuildError as error:
        not_run(f"the role with Debian's package: {error}")
    return str(made)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    tmp_path = tmp_path_factory.mktemp("fleet")
    for program in ("ssh", "ssh-keygen", "nsenter"):
        need_program(program)
    with ExitStack() as stack:
        made = []
        for name in HOSTS:
            (tmp_path / name).mkdir()
            host = standin.made_host(tmp_path / f"{name}-host")
            try:
                made.append(stack.enter_context(boxes.box(name, tmp_path / name, host)))
            except LabUnavailable as error:
                not_run(f"the role: {error}")
            standin.start_guest(made[-1])
        yield Fleet(made, tmp_path)


def test_nothing_is_to_be_said_against_it(tmp_path: Path) -> None:
    """By ansible-lint's strictest profile."""
    copy = tmp_path / "ansible"  # it looks for what belongs to the same repository
    shutil.copytree(PLAYBOOKS, copy)
    programs = ansible()
    done = subprocess.run(
        [*programs.words("ansible-lint"), "--offline", "--profile=production", "--strict"],
        cwd=copy,
        env=programs.environment() | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failure(s), 0 warning(s)" in done.stderr


def taken_away(fleet: Fleet) -> None:
    """It was there, and goes; nothing of it is left, and the guests' interrupts are as found."""
    assert fleet.everywhere(standin.AFFINITIES) == fleet.pinned()
    assert all(fleet.play("site.yml", virtirq_state="absent").changed().values())
    assert fleet.everywhere(standin.AFFINITIES) == FOUND
    left = fleet.everywhere("find / -xdev -name '*virtirq*' ! -path '/var/log/*'")
    assert left == dict.fromkeys(HOSTS, "")


# One after the other: each goes on from where the last one has left the hosts.


def test_to_check_touches_nothing(fleet: Fleet, package: str) -> None:
    before = fleet.everywhere(FILES)
    done = fleet.play("site.yml", "--check", "--diff", virtirq_source=package, virtirq_config=WELL)
    assert all(done.changed().values()), done.text
    assert '+default = "auto"' in done.text
    assert fleet.everywhere(FILES) == before
    assert fleet.everywhere(standin.AFFINITIES) == FOUND
    assert fleet.everywhere("command -v virtirq") == dict.fromkeys(HOSTS, "")


def test_all_is_there_and_the_guests_are_pinned(fleet: Fleet, package: str) -> None:
    done = fleet.play("site.yml", virtirq_source=package, virtirq_config=WELL)
    assert all(done.changed().values()), done.text
    assert fleet.everywhere(standin.AFFINITIES) == fleet.pinned()
    assert fleet.everywhere(f"cat {CONFIG}") == dict.fromkeys(HOSTS, WRITTEN)
    for told in fleet.everywhere(SERVICE).values():
        assert re.fullmatch(r"[1-9]\d* active enabled\n", told)
    for told in fleet.everywhere("virtirq --json status web").values():
        (guest,) = json.loads(told)["guests"]
        assert [each["status"] for each in guest["devices"][0]["interrupts"]] == ["in-place"] * 3


def test_again_it_is_all_right(fleet: Fleet, package: str) -> None:
    before = fleet.everywhere(SERVICE)
    done = fleet.play("site.yml", virtirq_source=package, virtirq_config=WELL)
    assert done.changed() == dict.fromkeys(HOSTS, 0), done.text
    assert fleet.everywhere(SERVICE) == before
    assert fleet.everywhere(standin.AFFINITIES) == fleet.pinned()


def test_another_version_and_back(fleet: Fleet, package: str, tmp_path: Path) -> None:
    need_program("dpkg-deb")
    made, other = tmp_path / "made", tmp_path / "virtirq_next.deb"
    subprocess.run(["dpkg-deb", "-R", package, made], check=True)
    control = made / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", r"\g<0>+next", control.read_text()))
    words = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(made), str(other)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for source, new in ((str(other), True), (package, False)):
        done = fleet.play("site.yml", virtirq_source=source, virtirq_config=WELL)
        assert all(done.changed().values()), done.text
        for version in fleet.everywhere("dpkg-query -W -f '${Version}' virtirq").values():
            assert version.endswith("+next") == new
        assert fleet.everywhere(standin.AFFINITIES) == fleet.pinned()
        for told in fleet.everywhere(SERVICE).values():
            assert re.fullmatch(r"[1-9]\d* active enabled\n", told)


def test_a_mistake_ends_it_at_the_first_host(fleet: Fleet, package: str) -> None:
    before = fleet.everywhere(f"{FILES}{SERVICE}")
    wrong = WELL | {"default": "auot"}
    done = fleet.play("site.yml", virtirq_source=package, virtirq_config=wrong)
    assert done.code != 0
    assert "virtirq: error: virtirq.toml: default: 'auot' is not a directive" in done.text
    assert {host: counts["failed"] for host, counts in done.hosts.items()} == {HOSTS[0]: 1}
    assert done.hosts[HOSTS[0]]["changed"] == 0
    assert fleet.everywhere(f"{FILES}{SERVICE}") == before
    assert fleet.everywhere(standin.AFFINITIES) == fleet.pinned()


def test_what_cannot_be_installed_is_refused(fleet: Fleet) -> None:
    before = fleet.everywhere(f"{FILES}{SERVICE}")
    wheel = "virtirq-0.1.0-py3-none-any.whl"
    done = fleet.play("site.yml", virtirq_source=wheel, virtirq_config=WELL)
    assert done.code != 0
    assert f"virtirq_source: neither a .deb nor a .pyz: {wheel}" in done.text
    assert list(done.hosts) == [HOSTS[0]]
    assert fleet.everywhere(f"{FILES}{SERVICE}") == before


def test_what_is_found_ends_it_and_that_host_is_put_back(fleet: Fleet, package: str) -> None:
    """No mistake by its form: the host has no such CPU."""
    first, second = HOSTS
    before = fleet.everywhere(SERVICE)
    other = WELL | {"rule": [{"guest": "web", "directive": "77"}]}
    done = fleet.play("site.yml", virtirq_source=package, virtirq_config=other)
    assert done.code != 0
    assert list(done.hosts) == [first]
    assert "target-offline: web" in done.text
    assert fleet.everywhere(SERVICE) == {first: "0 inactive disabled\n", second: before[second]}
    assert fleet.everywhere(standin.AFFINITIES) == {
        first: FOUND[first],
        second: fleet.pinned()[second],
    }
    assert fleet.hosts[second].run(f"cat {CONFIG}") == WRITTEN


def test_all_is_put_back_everywhere(fleet: Fleet) -> None:
    assert fleet.play("restore.yml").changed() == dict(zip(HOSTS, (0, 2), strict=True))
    assert fleet.everywhere(SERVICE) == dict.fromkeys(HOSTS, "0 inactive disabled\n")
    assert fleet.everywhere(standin.AFFINITIES) == FOUND
    assert fleet.play("restore.yml").changed() == dict.fromkeys(HOSTS, 0)


def test_what_cannot_be_put_back_is_said(fleet: Fleet, package: str) -> None:
    first = HOSTS[0]
    fleet.hosts[first].run("mkdir -p /run/virtirq; echo '{' > /run/virtirq/journal.jsonl")
    done = fleet.play("site.yml", virtirq_source=package, virtirq_config=WELL)
    assert done.code != 0
    assert list(done.hosts) == [first]
    assert "journal-unusable" in done.text
    assert "Not put back: virtirq: error: /run/virtirq/journal.jsonl" in done.text
    assert fleet.everywhere(standin.AFFINITIES) == FOUND
    assert fleet.everywhere(SERVICE) == dict.fromkeys(HOSTS, "0 inactive disabled\n")
    fleet.hosts[first].run("rm -r /run/virtirq")


def test_taken_away_nothing_is_left(fleet: Fleet, package: str) -> None:
    fleet.play("site.yml", virtirq_source=package, virtirq_config=WELL)
    taken_away(fleet)


def test_the_one_file_does_as_well(fleet: Fleet, tmp_path: Path) -> None:
    file = str(pyz.pyz(tmp_path))
    metrics = "/run/prometheus"
    fleet.everywhere(f"mkdir {metrics}")
    settings = {
        "virtirq_source": file,
        "virtirq_config": WELL,
        "virtirq_textfile_dir": metrics,
    }
    assert all(fleet.play("site.yml", **settings).changed().values())
    assert fleet.everywhere(standin.AFFINITIES) == fleet.pinned()
    for told in fleet.everywhere(SERVICE).values():
        assert re.fullmatch(r"[1-9]\d* active enabled\n", told)
    fleet.everywhere("systemctl start virtirq-metrics.service")
    for told in fleet.everywhere(f"cat {metrics}/virtirq.prom").values():
        assert "\nvirtirq_daemon_up 1.0\n" in told
    done = fleet.play("site.yml", **settings)
    assert done.changed() == dict.fromkeys(HOSTS, 0), done.text
    taken_away(fleet)
