"""Bars, tables and the style sheet of the report: SVG and HTML text, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["bars", "style", "table"]

COLOURS = ("#2f6fb3", "#e08a1e", "#4a9d5b", "#8a63b8", "#9a9a9a")
ROW_PX, BAR_PX, LEFT_PX, ROOM_PX, WIDTH_PX = 22, 15, 190, 150, 860
LONGEST_NAME = 28

Parts = Sequence[tuple[str, Sequence[int]]]


def bars(names: Sequence[str], parts: Parts, *, unit: str, rate: bool = False) -> str:
    """A row for each name with its parts one after the other, and the sum, or the share of the last part.

    Args:
        names: R names.
        parts: (name of the part, its R numbers).
        unit: what is counted, for the description.
        rate: say which share the last part has.
    """
    totals = [sum(values[i] for _, values in parts) for i in range(len(names))]
    longest = max(totals, default=0) or 1
    scale = (WIDTH_PX - LEFT_PX - ROOM_PX) / longest
    colours = ["#7fb08a", "#c8452f"] if rate else [COLOURS[i % len(COLOURS)] for i in range(len(parts))]
    height = ROW_PX * len(names) + 4
    out = [f'<svg viewBox="0 0 {WIDTH_PX} {height}" width="{WIDTH_PX}" role="img" aria-label="{escape(unit)}">']
    for row, name in enumerate(names):
        y, x = row * ROW_PX + 2, float(LEFT_PX)
        short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        out.append(f'<text x="{LEFT_PX - 8}" y="{y + 12}" text-anchor="end">{escape(short)}</text>')
        for (part, values), colour in zip(parts, colours, strict=True):
            wide = values[row] * scale
            if values[row]:
                title = f"<title>{escape(name)}, {escape(part)}: {values[row]:,}</title>"
                out.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{max(wide, 1):.1f}" height="{BAR_PX}" fill="{colour}">'
                    f"{title}</rect>"
                )
            x += wide
        note = f"{totals[row]:,}"
        if rate and totals[row]:
            note += f" ({100 * parts[-1][1][row] / totals[row]:.1f} % no match)"
        out.append(f'<text x="{x + 6:.1f}" y="{y + 12}">{note}</text>')
    out.append("</svg>")
    return _legend([name for name, _ in parts], colours) + "".join(out)


def _legend(names: Sequence[str], colours: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = (f'<span><i style="background:{c}"></i>{escape(n)}</span>' for n, c in zip(names, colours, strict=True))
    return f"<p class=legend>{''.join(items)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; cells are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def style() -> str:
    """The style sheet."""
    return """
body{margin:0;background:#f5f6f8;color:#20242a;font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px}
h1{margin:0;font-size:26px}h2{margin:36px 0 10px;font-size:20px;border-bottom:1px solid #d5d9df;padding-bottom:4px}
h3{margin:24px 0 6px;font-size:16px}small{color:#69707a;font-weight:normal}
.sub{color:#5a616b;margin:4px 0;overflow-wrap:anywhere}
.verdict{font-size:17px;font-weight:600;padding:10px 14px;border-radius:6px;background:#e3f1e6;color:#1d5a2c}
.verdict.errors{background:#fbe4e0;color:#8c2213}.verdict.warnings{background:#fdf1d8;color:#6f4d00}
.tiles{display:flex;flex-wrap:wrap;gap:12px}.tiles div{background:#fff;border:1px solid #dfe3e8;border-radius:6px;
padding:8px 16px}.tiles b{display:block;font-size:20px}
table{border-collapse:collapse;width:100%;background:#fff;font-size:14px}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid #e6e9ed;vertical-align:top}
td:nth-child(3),th:nth-child(3){text-align:right}
a{color:#1d5fa8}
.tag{font-size:12px;font-weight:600;padding:1px 7px;border-radius:9px;white-space:nowrap;
background:#e6e9ed;color:#4a515b}
.tag.error{background:#c8452f;color:#fff}.tag.fix,.tag.warn{background:#f3cf7a;color:#553b00}
.cards{display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start}
.card{background:#fff;border:1px solid #dfe3e8;border-radius:6px;padding:8px;width:min-content}
.pair{display:flex;gap:8px}
.card p{margin:4px 0 0;font-size:13px;overflow-wrap:break-word}
figure{margin:0;flex:none;width:min-content;min-width:200px}figcaption{font-size:12px;color:#5a616b;overflow-wrap:anywhere}
img{display:block}
.broken{width:200px;height:110px;background:#eceff2;color:#69707a;display:flex;align-items:center;justify-content:center;
text-align:center;font-size:12px;padding:8px;box-sizing:border-box}
details{margin:8px 0}summary{cursor:pointer;color:#1d5fa8}li{overflow-wrap:anywhere;font-size:14px}
svg{max-width:100%;height:auto;background:#fff;border:1px solid #dfe3e8;border-radius:6px;font-size:12px;display:block}
svg text{fill:#20242a}.legend span{margin-right:16px;font-size:13px}
.legend i{display:inline-block;width:11px;height:11px;margin-right:5px;border-radius:2px}
"""
