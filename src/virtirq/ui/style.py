"""How pictures and reports look, in light and in dark: one table of colours, one style sheet of it.

Colours are written out where custom properties would be shorter: converters to PNG know none.
"""

from __future__ import annotations

from collections.abc import Mapping
from colorsys import hls_to_rgb
from typing import Final

CHARACTER: Final = 6.6
"""How wide a character of the font is, in pixels: 0.6 of its size."""
_HUES: Final = (210, 135, 275, 180, 310, 95, 240, 160, 290, 195, 120, 255)
"""Of guests, none near the red and amber of what is wrong; neighbours differ."""
GUEST_COLOURS: Final = len(_HUES)

_LIGHT: Final[Mapping[str, str]] = {
    "ground": "#ffffff",
    "package": "#f3f5f8",
    "node": "#fbfcfd",
    "edge": "#c8d0da",
    "cache": "#eef1f5",
    "cpu": "#ffffff",
    "isolated": "#e3e7ee",
    "efficiency": "#f4efe3",
    "ink": "#1f2733",
    "dim": "#5b6675",
    "right": "#6f8196",
    "loose": "#a86a00",
    "wrong": "#d1001f",
    "left": "#9aa5b1",
}
_DARK: Final[Mapping[str, str]] = {
    "ground": "#14181e",
    "package": "#1b2027",
    "node": "#181d23",
    "edge": "#3a4450",
    "cache": "#222932",
    "cpu": "#14181e",
    "isolated": "#2a323d",
    "efficiency": "#2b281f",
    "ink": "#e4e9ef",
    "dim": "#9aa6b4",
    "right": "#8397ad",
    "loose": "#e0a030",
    "wrong": "#ff5a66",
    "left": "#5f6b79",
}


def _hex(hue: int, lightness: float, saturation: float) -> str:
    red, green, blue = (round(each * 255) for each in hls_to_rgb(hue / 360, lightness, saturation))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _colours(table: Mapping[str, str], fill: float, edge: float, depth: float) -> str:
    c = table
    rules = [
        f".virtirq .ground {{fill: {c['ground']}}}",
        f".virtirq text {{fill: {c['ink']}}}",
        f".virtirq text.facts, .virtirq text.Package, .virtirq text.NUMANode, .virtirq text.cache,"
        f" .virtirq text.dim {{fill: {c['dim']}}}",
        f".virtirq text.label {{stroke: {c['cpu']}}}",
        f".virtirq text.label.NUMANode {{stroke: {c['node']}}}",
        f".virtirq text.label.Package {{stroke: {c['package']}}}",
        f".virtirq text.label.shared, .virtirq text.label.cache {{stroke: {c['cache']}}}",
        f".virtirq text.label.isolated {{stroke: {c['isolated']}}}",
        f".virtirq text.bad {{fill: {c['wrong']}}}",
        f".virtirq rect.Package {{fill: {c['package']}; stroke: {c['edge']}}}",
        f".virtirq rect.NUMANode {{fill: {c['node']}; stroke: {c['edge']}}}",
        f".virtirq rect.cache {{fill: {c['cache']}; stroke: none}}",
        f".virtirq rect.Core {{fill: {c['cpu']}; stroke: {c['dim']}}}",
        f".virtirq rect.PU {{fill: {c['cpu']}; stroke: {c['edge']}}}",
        f".virtirq rect.PU.isolated {{fill: {c['isolated']}}}",
        f".virtirq rect.Core.efficiency {{stroke: {c['loose']}}}",
    ]
    for number, hue in enumerate(_HUES):
        colour, line = _hex(hue, fill, depth), _hex(hue, edge, depth)
        rules.append(
            f".virtirq rect.g{number}, .virtirq .g{number} rect {{fill: {colour}; stroke: {line}}}"
        )
        rules.append(f".virtirq text.label.g{number} {{stroke: {colour}}}")
    rules.append(f".virtirq rect.PU.shared {{fill: {c['cache']}; stroke: {c['dim']}}}")
    for verdict in ("right", "loose", "wrong", "left"):
        rules += [
            f".virtirq .{verdict} .line {{stroke: {c[verdict]}}}",
            f".virtirq .{verdict} .mark {{fill: {c[verdict]}; stroke: {c['ground']}}}",
        ]
    rules.append(f".virtirq .left .mark {{fill: {c['ground']}; stroke: {c['left']}}}")
    return "\n".join(rules)


_FORMS: Final = """\
.virtirq {font: 11px ui-monospace, "DejaVu Sans Mono", "Liberation Mono", Menlo, monospace}
.virtirq text.heading {font-size: 15px; font-weight: bold}
.virtirq text.small {font-size: 8px}
.virtirq text.middle {text-anchor: middle}
.virtirq text.bad, .virtirq text.name {font-weight: bold}
.virtirq text.label {stroke-width: 3; stroke-linejoin: round; paint-order: stroke}
.virtirq text.label {pointer-events: none}
.virtirq rect {stroke-width: 1}
.virtirq rect.Core {stroke-width: 2}
.virtirq rect.Core.efficiency {stroke-dasharray: 4}
.virtirq path, .virtirq line {fill: none}
.virtirq .touch {stroke: transparent; stroke-width: 8; pointer-events: stroke}
.virtirq .right .line {stroke-width: 1; stroke-opacity: .7}
.virtirq .loose .line {stroke-width: 1.4; stroke-dasharray: 6 3}
.virtirq .wrong .line {stroke-width: 2.2}
.crowded .wrong .line {stroke-width: 1.2; stroke-opacity: .45}
.virtirq .left .line {stroke-width: 1; stroke-dasharray: 2 4}
.virtirq .vector:hover .line {stroke-width: 4; stroke-opacity: 1; stroke-dasharray: none}"""

STYLE: Final = "\n".join(
    (
        "",
        _FORMS,
        _colours(_LIGHT, 0.86, 0.45, 0.55),
        "@media (prefers-color-scheme: dark) {",
        _colours(_DARK, 0.25, 0.55, 0.45),
        "}",
        "",
    )
)
