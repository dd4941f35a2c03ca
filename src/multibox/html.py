"""Reports as one HTML file that refers to nothing outside itself: page, tables, bars and pictures with boxes.

Every function takes text and gives `Html`. Text that is not `Html` yet is escaped where it enters, so a class name or
a path cannot break a page. Pages follow the reader's light or dark setting, fit a phone, print in light colours, and
can be read without scripts; a few lines of script add sorting where it was asked for.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as _escape

__all__ = [
    "Html",
    "Mark",
    "bars",
    "details",
    "embedded",
    "escape",
    "gallery",
    "page",
    "picture",
    "table",
    "tag",
    "tiles",
]

_LABEL_PX = 13
_LABEL_LETTER_PX = 7.5
_MOST_BEYOND = 2.0  # of the longer side of a picture: how far around it a picture is extended for boxes outside


class Html(str):
    """Text that is HTML already."""


def escape(value: object) -> Html:
    """HTML that shows a value; `Html` stays as it is. Characters that UTF-8 cannot write are written as escapes."""
    if isinstance(value, Html):
        return value
    return Html(_escape(str(value)).encode("utf-8", "backslashreplace").decode("utf-8"))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element; `class_` gives the attribute class, and attributes that are None are left out.

    >>> tag("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return Html(f"<{name}{opening}>{''.join(map(escape, content))}</{name}>")


def page(title: str, parts: Iterable[object], *, subtitle: str = "") -> Html:
    """A whole page: heading, subtitle and parts one below the other."""
    head = f'<meta name="viewport" content="width=device-width, initial-scale=1">{tag("title", title)}'
    under = tag("p", subtitle, class_="note") if subtitle else ""
    body = "\n".join(map(escape, [tag("h1", title), under, *parts]))
    return Html(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{head}<style>{_STYLE}</style></head>'
        f"<body><main>{body}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def tiles(values: Iterable[tuple[object, object]]) -> Html:
    """(value, name) pairs side by side, the values large."""
    return tag("div", *(tag("div", tag("b", value), tag("span", name)) for value, name in values), class_="tiles")


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = (), sortable: bool = False
) -> Html:
    """A table, with the columns in `numbers` flush right; a click on a heading sorts if `sortable`."""
    right = set(numbers)

    def line(kind: str, cells: Sequence[object]) -> Html:
        return tag("tr", *(tag(kind, cell, class_="n" if i in right else None) for i, cell in enumerate(cells)))

    content = tag("thead", line("th", head)), tag("tbody", *(line("td", row) for row in rows))
    return tag("div", tag("table", *content, class_="sortable" if sortable else None), class_="scroll")


def bars(names: Sequence[str], parts: Sequence[tuple[str, Sequence[int]]], *, rate: bool = False) -> Html:
    """A bar for each of R names, its parts one after the other.

    Args:
        names: R names.
        parts: (name of the part, its R counts).
        rate: colour two parts as good and bad, and say the share of the second.
    """
    totals = [sum(counts[row] for _, counts in parts) for row in range(len(names))]
    longest = max(totals, default=0) or 1
    colours = ["good", "bad"] if rate else [f"c{i % 5}" for i in range(len(parts))]
    rows = []
    for row, name in enumerate(names):
        pieces = [
            tag("i", class_=colour, style=f"width:{100 * counts[row] / longest:.2f}%", title=f"{part}: {counts[row]:,}")
            for (part, counts), colour in zip(parts, colours, strict=True)
            if counts[row]
        ]
        share = f" ({100 * parts[-1][1][row] / totals[row]:.1f} % {parts[-1][0]})" if rate and totals[row] else ""
        rows.append(tag("tr", tag("th", name), tag("td", *pieces), tag("td", f"{totals[row]:,}{share}")))
    legend = [tag("span", tag("i", class_=colour), name) for (name, _), colour in zip(parts, colours, strict=True)]
    return Html(tag("p", *legend, class_="legend") * (len(parts) > 1) + tag("table", *rows, class_="bars"))


def details(summary: object, items: Iterable[object], *, open_: bool = False) -> Html:
    """A list that opens on a click."""
    inner = tag("summary", summary), tag("ul", *(tag("li", item) for item in items))
    return tag("details", *inner, open="open" if open_ else None)


def embedded(content: bytes, kind: str, caption: str) -> Html:
    """A picture file (`kind` is png or jpeg) with a caption."""
    return Html(
        f'<figure><img alt="{escape(caption)}" src="{_data_url(content, kind)}"><figcaption>{escape(caption)}'
        "</figcaption></figure>"
    )


@dataclass(frozen=True)
class Mark:
    """A box on a picture: corners in its pixels, a CSS colour, a label, dashed or not."""

    box_xyxy: tuple[float, float, float, float]
    colour: str
    label: str = ""
    dashed: bool = False


def picture(jpeg: bytes, size_wh: tuple[int, int], marks: Iterable[Mark], *, caption: str = "") -> Html:
    """A picture with boxes, its surroundings shown as far as boxes leave it, and a caption."""
    marks, (width, height) = list(marks), size_wh
    reach = _MOST_BEYOND * max(size_wh)
    left = max(-reach, min([0.0, *(mark.box_xyxy[0] for mark in marks)]))
    top = max(-reach, min([0.0, *(mark.box_xyxy[1] for mark in marks)]))
    right = min(width + reach, max([width, *(mark.box_xyxy[2] for mark in marks)]))
    bottom = min(height + reach, max([height, *(mark.box_xyxy[3] for mark in marks)]))
    drawn = []
    for mark in marks:
        x1, y1, x2, y2 = mark.box_xyxy
        dash = ' stroke-dasharray="6 4"' if mark.dashed else ""
        place = f'x="{x1:.1f}" y="{y1:.1f}" width="{max(0, x2 - x1):.1f}" height="{max(0, y2 - y1):.1f}"'
        drawn.append(f'<rect {place} stroke="{escape(mark.colour)}"{dash}/>')
    for mark in marks:
        if mark.label:
            x = max(left, min(mark.box_xyxy[0] + 3, right - _LABEL_LETTER_PX * len(mark.label)))
            y = min(bottom - 3, max(top, mark.box_xyxy[1]) + _LABEL_PX)
            drawn.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{escape(mark.colour)}">{escape(mark.label)}</text>')
    box = f"{left:.1f} {top:.1f} {right - left:.1f} {bottom - top:.1f}"
    image = f'<image width="{width}" height="{height}" href="{_data_url(jpeg, "jpeg")}"/>'
    return Html(
        f'<figure style="width:{right - left:.0f}px"><svg viewBox="{box}" role="img" aria-label="{escape(caption)}">'
        f"{image}{''.join(drawn)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def gallery(cards: Iterable[tuple[object, Mapping[str, float]]], *, order: Sequence[str] = ()) -> Html:
    """Cards side by side, (content, values to sort by); a button for each name in `order` sorts, greatest first."""
    inner = [
        tag("div", content, class_="card", **{f"data_{i}": values[key] for i, key in enumerate(order)})
        for content, values in cards
    ]
    buttons = [tag("button", key, type="button", data_key=i) for i, key in enumerate(order)]
    sort = tag("p", "Sort by: ", *buttons, class_="sort", hidden="hidden") if order else ""
    return tag("div", sort, tag("div", *inner, class_="cards"), class_="gallery")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#20242a;--dim:#5d6570;--line:#dce0e6;--link:#1d5fa8;
--good:#5fa872;--bad:#cc4b34;--error:#fbe4e0;--warn:#fdf1d8;--fine:#e3f1e6;
--c0:#2f6fb3;--c1:#e08a1e;--c2:#4a9d5b;--c3:#8a63b8;--c4:#8a8f98}
@media (prefers-color-scheme:dark){:root{--page:#15181c;--card:#1e2228;--ink:#e4e7eb;--dim:#9aa3ae;--line:#343a43;
--link:#7db4f0;--error:#4d211a;--warn:#453614;--fine:#1c3a25;--c0:#5b9be0;--c4:#737a85}}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--dim:#444;--line:#bbb;--link:#000;
--error:#fbe4e0;--warn:#fdf1d8;--fine:#e3f1e6}.card,figure,tr{break-inside:avoid}.sort{display:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 16px}a{color:var(--link)}
h1{margin:0 0 4px;font-size:25px;overflow-wrap:anywhere}h3{margin:24px 0 6px;font-size:16px}
h2{margin:36px 0 10px;font-size:20px;border-bottom:1px solid var(--line);padding-bottom:4px}
small,.note{color:var(--dim);font-weight:normal}.note{margin:4px 0;font-size:14px;overflow-wrap:anywhere}
.status{font-size:17px;font-weight:600;padding:10px 14px;border-radius:6px;background:var(--fine)}
.status.errors{background:var(--error)}.status.warnings{background:var(--warn)}
.level{font-size:12px;font-weight:600;padding:1px 7px;border-radius:9px;white-space:nowrap;background:var(--line)}
.level.error{background:var(--bad);color:#fff}.level.fix,.level.warn{background:#f3cf7a;color:#553b00}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}.tiles>div,.card{background:var(--card);
border:1px solid var(--line);border-radius:6px;padding:8px 14px}.tiles b{display:block;font-size:20px}
.tiles span{color:var(--dim);font-size:13px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px;background:var(--card);
font-variant-numeric:tabular-nums}th,td{text-align:left;padding:5px 10px;border-bottom:1px solid var(--line);
vertical-align:top}thead th{border-bottom:2px solid var(--dim);white-space:nowrap}.n{text-align:right}
.sortable th{cursor:pointer}.sortable th:after{content:" \\2195";color:var(--dim)}
th[aria-sort=ascending]:after{content:" \\2191"}th[aria-sort=descending]:after{content:" \\2193"}
.bars{width:100%;background:none}.bars th{font-weight:normal;text-align:right;width:22%;overflow-wrap:anywhere}
.bars td{border:0;padding:3px 8px;white-space:nowrap}.bars th{border:0;padding:3px 8px}
.bars td:nth-child(2){width:56%;font-size:0}
.bars i{display:inline-block;height:15px;min-width:1px;vertical-align:middle}
.bars td:last-child{white-space:normal;width:22%}
.legend span{margin-right:16px;font-size:13px}.legend i{display:inline-block;width:11px;height:11px;margin-right:5px}
.c0{background:var(--c0)}.c1{background:var(--c1)}.c2{background:var(--c2)}.c3{background:var(--c3)}
.c4{background:var(--c4)}.good{background:var(--good)}.bad{background:var(--bad)}
.cards{display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start}.card{padding:8px;max-width:100%;width:max-content}
.card p{margin:4px 0 0;width:0;min-width:100%;font-size:13px;overflow-wrap:anywhere}
.pair{display:flex;flex-wrap:wrap;gap:8px}
figure{margin:0;min-width:170px;max-width:100%}figcaption{font-size:12px;color:var(--dim);overflow-wrap:anywhere}
figure svg{display:block;width:100%;height:auto}img{display:block;max-width:100%;height:auto}
.plots{display:flex;flex-wrap:wrap;gap:12px}
.plots figure{flex:1 1 480px;background:#fff;border-radius:6px;padding:6px}.plots figcaption{color:#444}
rect{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}
svg text{font:600 13px system-ui,"DejaVu Sans",sans-serif;paint-order:stroke;stroke:#000c;stroke-width:3px}
.missing{width:200px;height:110px;background:var(--line);color:var(--dim);display:flex;align-items:center;
justify-content:center;text-align:center;font-size:12px;padding:8px}
.sort button{font:inherit;font-size:13px;margin:0 6px 6px 0;padding:3px 10px;
border:1px solid var(--line);border-radius:6px;background:var(--card);color:var(--ink);cursor:pointer}
.sort button[aria-pressed=true]{border-color:var(--link);
color:var(--link)}details{margin:8px 0}summary{cursor:pointer;color:var(--link)}
li{overflow-wrap:anywhere;font-size:14px}
"""
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const numeric = head.className == "n", value = row => row.cells[column].textContent;
    const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b);
    const sort = () => {
      const first = numeric ? "descending" : "ascending", other = numeric ? "ascending" : "descending";
      const way = head.getAttribute("aria-sort") == first ? other : first;
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way);
      const key = row => numeric ? parseFloat(value(row).replaceAll(",", "")) : value(row);
      const rows = [...body.rows], last = rows.filter(row => Number.isNaN(key(row)));
      const known = rows.filter(row => !last.includes(row)).sort((a, b) => compare(key(a), key(b)));
      body.append(...(way == "ascending" ? known : known.reverse()), ...last);
    };
    head.tabIndex = 0;
    head.onclick = sort;
    head.onkeydown = event => { if (event.key == "Enter") sort(); };
  });
}
for (const gallery of document.querySelectorAll(".gallery")) {
  const buttons = [...gallery.querySelectorAll("button")], cards = gallery.querySelector(".cards");
  for (const button of buttons) button.onclick = () => {
    buttons.forEach(each => each.setAttribute("aria-pressed", each == button));
    const value = card => Number(card.getAttribute("data-" + button.dataset.key));
    cards.append(...[...cards.children].sort((a, b) => value(b) - value(a)));
  };
  gallery.querySelectorAll(".sort").forEach(each => each.hidden = false);
}
"""
