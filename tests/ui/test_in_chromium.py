"""Pictures as a browser has them: what can be read, and what can be pointed at."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.needs import need_chromium
from tests.ui.pictured import two_sockets
from virtirq.model import Snapshot
from virtirq.policy.config import Config
from virtirq.policy.plan import plan
from virtirq.ui import picture, scene

_LOOK = """
const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1
  && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
const out = {texts: 0, outside: [], marks: 0, unpointed: []};
for (const text of document.querySelectorAll('text[id]')) {
  const box = document.getElementById(text.id.replace(/_text(_\\d+)?$/, '_rect'));
  out.texts += 1;
  if (!inside(text.getBoundingClientRect(), box.getBoundingClientRect()))
    out.outside.push(text.textContent);
}
for (const mark of document.querySelectorAll('[id$="_mark"]')) {
  mark.scrollIntoView({block: 'center', inline: 'center'});
  const at = mark.querySelector('.mark').getBoundingClientRect();
  const there = document.elementFromPoint(at.x + at.width / 2, at.y + at.height / 2);
  out.marks += 1;
  if (there?.closest('g[id]')?.dataset.irq !== mark.dataset.irq) out.unpointed.push(mark.id);
}
out.ground = getComputedStyle(document.querySelector('.ground')).fill;
out.ink = getComputedStyle(document.querySelector('text.PU')).fill;
document.body.dataset.out = JSON.stringify(out);
"""


def looked_at(svg: str, where: Path, *, dark: bool = False) -> Any:
    """What `_LOOK` finds of it."""
    chromium = need_chromium()
    page = where / "page.html"
    page.write_text(f"<!DOCTYPE html><body>{svg.partition('?>')[2]}<script>{_LOOK}</script></body>")
    done = subprocess.run(
        [
            *(chromium, "--headless", "--disable-gpu", "--window-size=2000,1400", "--dump-dom"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            f"--user-data-dir={where}/profile",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    found = re.search(r'<body[^>]* data-out="([^"]*)"', done.stdout)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))


def svg(state: Snapshot) -> str:
    wanted = plan(state, Config())
    return picture.svg([scene.now(state, wanted), scene.planned(state, wanted)])


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)))


@pytest.mark.parametrize(
    "state", [two_sockets(4, 6, 4, hybrid=True), two_sockets(32, 40, 5)], ids=["2x8", "2x64"]
)
def test_all_can_be_read_and_pointed_at(state: Snapshot, tmp_path: Path) -> None:
    found = looked_at(svg(state), tmp_path)
    assert found["texts"] > 2 * len(state.topology.online)
    assert found["outside"] == []
    assert found["marks"] == 2 * len(state.interrupts)
    assert found["unpointed"] == []


def test_it_is_dark_where_the_reader_wants_that(tmp_path: Path) -> None:
    state = two_sockets(4, 6, 4)
    for dark in (False, True):
        (tmp_path / str(dark)).mkdir()
        found = looked_at(svg(state), tmp_path / str(dark), dark=dark)
        ground, ink = brightness(found["ground"]), brightness(found["ink"])
        assert (ground < 100 < 600 < ink) is dark, found
        assert (ink < 150 < 600 < ground) is not dark, found


def test_a_text_that_sticks_out_would_be_noticed(tmp_path: Path) -> None:
    state = two_sockets(4, 1, 1)
    found = looked_at(
        svg(state).replace(">network</text>", ">a network of some length</text>"), tmp_path
    )
    assert set(found["outside"]) == {"a network of some length"}
