"""The manifests, built by kustomize and validated as strictly as Kubernetes' own schemas allow."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from lab import pypi
from lab.full import BuildError, trees
from lab.kernel import LabUnavailable
from tests.conftest import REPOSITORY
from tests.needs import not_run

MANIFESTS: Final = REPOSITORY / "packaging/kubevirt"
BASE: Final = ["namespace", "configmap", "daemonset"]
MORE: Final = {
    "openshift": ["serviceaccount", "role", "rolebinding"],
    "metrics": ["configmap", "service"],
    "nodes": [],
}
"""What each component adds, of what there is a schema of."""


@pytest.fixture(scope="module")
def kubectl() -> list[str]:
    """Debian's, whose kustomize it is."""
    try:
        tree = trees.tree("kubectl", "extract", ["kubernetes-client"])
    except BuildError as error:
        not_run(f"kustomize: {error}")
    loader = next(tree.glob("usr/lib/*/ld-linux*"), None) or tree / "lib64/ld-linux-x86-64.so.2"
    libraries = ":".join(str(each) for each in tree.glob("usr/lib/*-linux-gnu"))
    return [str(loader), "--library-path", libraries, str(tree / "usr/bin/kubectl")]


@pytest.fixture(scope="module")
def validated() -> Callable[[str, Path], list[str]]:
    """The kinds that were found valid; fails for one that is not."""
    try:
        programs = pypi.programs("kubernetes-validate", "kubernetes-validate>=1.31")
    except LabUnavailable as error:
        not_run(f"kubernetes-validate: {error}")

    def validate(text: str, work: Path) -> list[str]:
        file = work / "built.yaml"
        file.write_text(text)
        done = subprocess.run(
            [*programs.words("kubernetes-validate"), "--strict", str(file)],
            env=programs.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert re.findall("WARN .*kind (.*) with", said) in ([], ["SecurityContextConstraints"])
        return re.findall(r"passed for resource (\w+)/", said)

    return validate


def build(kubectl: list[str], place: Path) -> str:
    done = subprocess.run(
        [*kubectl, "kustomize", str(place)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_as_it_is(
    kubectl: list[str], validated: Callable[[str, Path], list[str]], tmp_path: Path
) -> None:
    text = build(kubectl, MANIFESTS / "base")
    assert sorted(validated(text, tmp_path)) == sorted(BASE)


def test_what_is_wrong_is_found(
    kubectl: list[str], validated: Callable[[str, Path], list[str]], tmp_path: Path
) -> None:
    text = build(kubectl, MANIFESTS / "base")
    with pytest.raises(AssertionError, match="hostPIDs"):
        validated(text.replace("hostPID:", "hostPIDs:"), tmp_path)


@pytest.mark.parametrize("chosen", [*([name] for name in MORE), list(MORE)], ids="+".join)
def test_with_components(
    kubectl: list[str],
    validated: Callable[[str, Path], list[str]],
    tmp_path: Path,
    chosen: list[str],
) -> None:
    """Whichever an operator takes."""
    example = (MANIFESTS / "example/kustomization.yaml").read_text()
    for name in MORE:
        line = f"  - ../components/{name}\n"
        assert line in example
        example = example if name in chosen else example.replace(line, "")
    for name in ("base", "components"):
        (tmp_path / name).symlink_to(MANIFESTS / name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(example)
    text = build(kubectl, tmp_path / "mine")
    kinds = [*BASE, *(kind for name in chosen for kind in MORE[name])]
    assert sorted(validated(text, tmp_path)) == sorted(kinds)
    assert "image: registry.example.org/virtirq:0.1.0" in text
    wanted = {
        "openshift": "serviceAccountName: virtirq",
        "metrics": "path: conf.d/metrics.toml",
        "nodes": 'virtirq: "yes"',
    }
    for name, line in wanted.items():
        assert (line in text) == (name in chosen)
    # All that it was given for is still asked for.
    for line in ("hostPID: true", "mountPath: /etc/virtirq", "- SYS_PTRACE"):
        assert line in text
