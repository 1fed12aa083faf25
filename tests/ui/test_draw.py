"""``virtirq draw``: the files that it writes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from defusedxml.ElementTree import fromstring

from tests.conftest import REPOSITORY
from virtirq.errors import DependencyError
from virtirq.ui import pages
from virtirq.ui.cli import main

DEMO = str(REPOSITORY / "src/virtirq/demo/two-node.tar.xz")


def draw(*words: str | Path) -> int:
    return main(["-s", DEMO, "draw", *map(str, words)])


def test_a_picture_of_some_guests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw("w*", "-o", tmp_path / "web.svg") == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/web.svg: 8 interrupts of 1 guest, 8 on a wrong CPU\n"
    )
    root = fromstring((tmp_path / "web.svg").read_text())
    text = " ".join(each.text or "" for each in root.iter())
    assert "web" in text
    assert "build" not in text


def test_a_page(tmp_path: Path) -> None:
    assert draw("--plan", "-o", tmp_path / "host.html", "-q") == 0
    text = (tmp_path / "host.html").read_text()
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert text.count("<svg") == 1


def test_png_is_as_large_as_the_picture_twice(tmp_path: Path) -> None:
    assert draw("-o", tmp_path / "host.png") == 0
    assert draw("-o", tmp_path / "host.svg") == 0
    data = (tmp_path / "host.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    root = fromstring((tmp_path / "host.svg").read_text())
    assert struct.unpack(">II", data[16:24]) == tuple(
        2 * int(root.get(each) or 0) for each in ("width", "height")
    )


def test_without_the_module_for_png_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(DependencyError) as error:
        pages.png("<svg/>")
    assert "resvg_py is not installed" in str(error.value)
    assert "virtirq[png]" in str(error.value.hint)


def test_the_documentations_picture_is_what_is_drawn(tmp_path: Path) -> None:
    assert draw("--plan", "-o", tmp_path / "host.svg", "-q") == 0
    drawn = (tmp_path / "host.svg").read_text()
    assert drawn == (REPOSITORY / "docs/demo-host.svg").read_text(), "run 'make pictures'"


def test_what_nobody_could_read_is_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtirq.ui.scene._MOST", 18)
    assert draw("-o", tmp_path / "host.svg") == 2
    told = capsys.readouterr().err
    assert "19 interrupts are too many for one picture\nhint: name the guests" in told
    assert not list(tmp_path.iterdir())
    assert draw("web", "-o", tmp_path / "host.svg") == 0
    assert main(["-s", DEMO, "report", "-o", str(tmp_path / "host.html")]) == 0
    page = (tmp_path / "host.html").read_text()
    assert "19 interrupts are too many for one." in page
    assert "<svg" not in page
