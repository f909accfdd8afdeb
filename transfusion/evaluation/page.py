"""The parts of a self-contained HTML page, which needs no script and no other file: images are data URIs."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from transfusion.evaluation.pictures import to_picture

STYLE = (
    """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1d1f24; --soft: #5d636e; --rule: #e2e3e6;
  --accent: #0b62a8; --good: #1a7f4b; --bad: #c02c2c; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0508c;
  --c4: #b57d00; --c5: #6b6f7a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1d2026; --ink: #e8e9ec; --soft: #a3a9b4;
  --rule: #343841; --accent: #6fb6f0; --good: #5cc98d; --bad: #ff8080; --c0: #56b4e9; --c1: #f0894a; --c2: #35c79c;
  --c3: #e29cc8; --c4: #e6b450; --c5: #a3a9b4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 0 0 6px; }
section { margin-top: 52px; }
p { margin: 0 0 14px; max-width: 75ch; }
.lead, .note, figcaption, .legend { color: var(--soft); }
.note { font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 18px 0 0; padding: 10px 0; font-size: 0.92rem;
  border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 14px; margin: 22px 0 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 1.75rem; line-height: 1.25; font-variant-numeric: tabular-nums; font-weight: 650; }
.card span { display: block; color: var(--soft); font-size: 0.86rem; line-height: 1.4; }
.card .name { color: var(--ink); font-size: 0.92rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; font-size: 0.85rem; white-space: nowrap; }
tbody th { font-weight: 500; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 18px; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 14px; }
.chart figcaption { color: var(--ink); font-weight: 600; font-size: 0.93rem; }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 12px; }
.rule { stroke: var(--rule); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .dashed { stroke-dasharray: 6 4; }
.band { opacity: 0.2; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 0.83rem; }
.chart .key { display: inline-block; width: 24px; height: 8px; margin-right: 6px; vertical-align: middle; }
"""
    + "".join(
        f".line.c{i} {{ stroke: var(--c{i}); }} .band.c{i}, .dot.c{i} {{ fill: var(--c{i}); }}\n" for i in range(6)
    )
    + """
img { display: inline-block; vertical-align: top; }
.pixels { image-rendering: pixelated; border-radius: 3px; margin: 0 4px 4px 0;
  outline: 1px solid var(--rule); }
.samples th { font-weight: 500; min-width: 130px; max-width: 210px; vertical-align: middle; }
.samples td { white-space: nowrap; padding: 5px 14px 2px 0; font-size: 0; }
.strip { display: flex; gap: 10px; min-width: max-content; padding: 4px 0 8px; }
.strip figcaption { font-size: 0.78rem; text-align: center; font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px; font-size: 0.84rem;
  line-height: 1.35; overflow-wrap: anywhere; }
.tile figcaption { color: var(--ink); margin-top: 6px; }
.tile.wrong { border-color: var(--bad); box-shadow: 0 0 0 1px var(--bad); }
.wrong .verdict { color: var(--bad); font-weight: 600; } .right .verdict { color: var(--good); }
.verdict { display: block; font-size: 0.8rem; } .samples .verdict { color: var(--soft); }
.plate { display: inline-block; max-width: 100%; background: #fff; border: 1px solid var(--rule); border-radius: 10px;
  padding: 10px; }
.plate img { max-width: 100%; height: auto; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: 0.85rem/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; margin: 0 0 14px; }
summary { cursor: pointer; color: var(--accent); margin: 8px 0; }
.absent { border-left: 4px solid var(--c4); background: var(--card); padding: 8px 14px; margin: 12px 0;
  color: var(--soft); }
@media print { section { break-inside: avoid; } }
"""
)
# The page loads nothing from elsewhere, whatever a caption or a config holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escape(text: object) -> str:
    return html.escape(str(text))


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page. A section is (id, heading, HTML). Title and headings are escaped here, the HTML is not."""
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>\n' for name, heading, content in sections
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n'
        f"<h1>{escape(title)}</h1>\n{header}\n<nav>{links}</nav>\n</header>\n{body}</main>\n</body>\n</html>\n"
    )


def absent(reason: str) -> str:
    """A paragraph that says that something is missing, and why."""
    return f'<p class="absent">{escape(reason)}</p>'


def data_uri(picture: Image.Image) -> str:
    """The picture as a PNG in a data URI."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def display_size(height: int, least: int) -> int:
    """The height in CSS pixels of an image of `height` pixels: a whole multiple of it, at least about `least`."""
    return min(height * max(1, round(least / height)), max(128, least))


def thumbnail(image: np.ndarray, text: str, least: int = 48) -> str:
    """An image uint8 [H, W, C] as an <img>, enlarged without smoothing. `text` says what it shows."""
    height = display_size(image.shape[0], least)
    width = round(height * image.shape[1] / image.shape[0])
    picture = to_picture(image)
    if image.shape[2] == 1:
        picture = picture.convert("L")
    return f'<img class="pixels" src="{data_uri(picture)}" width="{width}" height="{height}" alt="{escape(text)}">'


def plate(picture: Image.Image, text: str) -> str:
    """A picture on a white background of its own."""
    return (
        f'<div class="plate"><img src="{data_uri(picture)}" width="{picture.width}" height="{picture.height}" '
        f'alt="{escape(text)}"></div>'
    )


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table. Cells are HTML; the first cell of a row is its header."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f'<td class="number">{cell}</td>' for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Cards with a name, a value and small print each. All texts are escaped here."""
    inner = "".join(
        f'<div class="card"><span class="name">{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(small)}</span></div>"
        for name, value, small in items
    )
    return f'<div class="cards">{inner}</div>'
