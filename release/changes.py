"""The changelog as values: https://keepachangelog.com/en/1.1.0/, versions by semver.org."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

KINDS: Final = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
UNRELEASED: Final = "Unreleased"
_HEADING = re.compile(r"## \[(?P<version>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?")
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Section:
    """What changed in a version; `date` is None for what is not released yet."""

    version: str
    date: str | None
    text: str

    @property
    def number(self) -> tuple[int, ...]:
        """To compare versions by."""
        return tuple(map(int, self.version.split(".")))


def sections(changelog: str) -> list[Section]:
    """Newest first. Raises ValueError, with the line, for what is not by the convention."""
    found: list[Section] = []
    for part in re.split(r"^(?=## )", changelog, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        match = _HEADING.fullmatch(heading)
        if match is None:
            raise ValueError(f"not '## [VERSION] - DATE': {heading!r}")
        version, date = match["version"], match["date"]
        if (version == UNRELEASED) != (date is None):
            raise ValueError(f"a version has a date, and what is not released has none: {heading}")
        if version != UNRELEASED and not _SEMVER.fullmatch(version):
            raise ValueError(f"not MAJOR.MINOR.PATCH: {version}")
        for kind in re.findall(r"^### (.*)$", text, re.MULTILINE):
            if kind not in KINDS:
                raise ValueError(f"{version}: {kind!r} is none of {', '.join(KINDS)}")
        found.append(Section(version, date, text.strip()))
    return found


def section(changelog: str, version: str) -> Section:
    """A version's; where it is not released yet, what will be its."""
    found = {each.version: each for each in sections(changelog)}
    return found.get(version) or found[UNRELEASED]
