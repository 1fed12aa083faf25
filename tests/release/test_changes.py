"""The changelog is by the convention, and agrees with the versions that are elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from release.changes import UNRELEASED, section, sections
from virtirq import __version__

MADE = """\
# Changelog

## [Unreleased]

### Added

- c

## [0.2.0] - 2026-02-01

### Fixed

- b

## [0.1.0] - 2026-01-01

### Added

- a
"""


def test_the_newest_comes_first(repository: Path) -> None:
    found = sections((repository / "CHANGELOG.md").read_text())
    assert found
    released = [each for each in found if each.version != UNRELEASED]
    assert found[-len(released) :] == released or not released
    assert released == sorted(released, key=lambda each: each.number, reverse=True)


def test_the_version_is_the_newest_or_the_next(repository: Path) -> None:
    """And Debian's package has the same."""
    found = sections((repository / "CHANGELOG.md").read_text())
    versions = [each.version for each in found]
    assert __version__ in versions or versions[0] == UNRELEASED
    (debian, _) = re.findall(r"[\w.]+", (repository / "debian/changelog").read_text())[1:3]
    assert debian == __version__


def test_a_sections_text() -> None:
    assert section(MADE, "0.2.0").text == "### Fixed\n\n- b"
    assert section(MADE, "0.3.0").text == "### Added\n\n- c"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("## 0.2.0, 2026-02-01", "not '## "),
        ("## [0.2.0]", "has a date"),
        ("## [Unreleased] - 2026-02-01", "has a date"),
        ("## [0.2] - 2026-02-01", "not MAJOR.MINOR.PATCH: 0.2"),
        ("## [0.2.0] - 2026-02-01\n\n### New", "0.2.0: 'New' is none of Added"),
    ],
)
def test_what_is_not_by_the_convention(wrong: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        sections(MADE.replace("## [0.2.0] - 2026-02-01", wrong))
