"""The report of an examination as one HTML file that refers to nothing outside itself."""

from __future__ import annotations

import base64
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.data.findings import DataError
from multibox.data.records import box_area
from multibox.doctor.anchor_fit import AnchorFit, Row
from multibox.doctor.box_checks import class_counts
from multibox.doctor.charts import bars, style, table
from multibox.doctor.examination import CHECKED, DEEP_ONLY, Diagnosis
from multibox.doctor.kinds import ILLNESSES, Level, Symptom
from multibox.doctor.picture_checks import split_of
from multibox.errors import ImageError, OptionError
from multibox.pictures.draw import draw_boxes
from multibox.pictures.read import one_line, read_picture

__all__ = ["write_report"]

THUMBNAIL_PX = 280
BEYOND_RGB = (225, 228, 232)
LISTED = 50
MOST_CLASSES = 100
_SIZE_EDGES = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LEVEL_NAMES: dict[Level, str] = {
    "error": "error",
    "fix": "warning, repairable",
    "warn": "warning",
    "ignore": "ignored",
}


def write_report(
    diagnosis: Diagnosis, path: str | os.PathLike[str], *, changes: Sequence[str] = (), thumbnails: int = 6
) -> None:
    """Write the report.

    Args:
        diagnosis: what was found.
        path: an .html file, replaced if it exists.
        changes: what a cleaned copy changed, a line each.
        thumbnails: the most findings of a kind that are shown as pictures.

    Raises:
        OptionError: the name does not end in .html.
        DataError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in {".html", ".htm"}:
        raise OptionError(f"report must be an .html file, got {str(path)!r}")
    text = "\n".join(_page(diagnosis, changes, thumbnails))
    try:
        target.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(target, f"cannot be written ({error.strerror})", "choose another place") from None


def _page(diagnosis: Diagnosis, changes: Sequence[str], thumbnails: int) -> Iterator[str]:
    dataset = diagnosis.dataset
    title = escape(one_line(dataset.origin or str(dataset.root)))
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Data report: {title}</title><style>{style()}</style></head><body><main>"
    yield f"<h1>Data report</h1><p class=sub>{title}</p>"
    yield f'<p class="verdict {diagnosis.status}">{escape(diagnosis.verdict())}</p>'
    yield _tiles(diagnosis)
    yield "<h2>Findings</h2>" + _overview(diagnosis)
    for level in ("error", "fix", "warn"):
        for kind in diagnosis.level(level):
            yield from _kind_section(diagnosis, kind, thumbnails)
    if changes:
        yield f"<h2>Cleaned copy</h2><details><summary>{len(changes)} changes</summary><ul>"
        yield from (f"<li>{escape(one_line(line))}</li>" for line in changes)
        yield "</ul></details>"
    yield from _statistics(diagnosis)
    if diagnosis.anchors is not None:
        yield from _anchor_section(diagnosis.anchors)
    yield "</main></body></html>"


def _tiles(diagnosis: Diagnosis) -> str:
    dataset = diagnosis.dataset
    codes = dataset.columns.split_codes
    tiles = [
        (f"{len(dataset):,}", "pictures"),
        (f"{dataset.num_boxes:,}", "boxes"),
        (f"{len(dataset.class_map)}", "classes"),
    ]
    tiles += [
        (f"{int((codes == code).sum()):,}", f"in {name}")
        for code, name in enumerate(dataset.columns.split_names)
        if name in dataset.splits
    ]
    return "<div class=tiles>" + "".join(f"<div><b>{n}</b>{escape(name)}</div>" for n, name in tiles) + "</div>"


def _overview(diagnosis: Diagnosis) -> str:
    rows = [
        [
            f'<span class="tag {level}">{_LEVEL_NAMES[level]}</span>',
            f'<a href="#{kind}">{kind}</a>' if level != "ignore" else kind,
            f"{count:,}",
            escape(ILLNESSES[kind].meaning),
            escape(ILLNESSES[kind].repair or ""),
        ]
        for level in ("error", "fix", "warn", "ignore")
        for kind, count in diagnosis.level(level).items()
    ]
    found = table(["level", "kind", "count", "what it means", "in a cleaned copy"], rows) if rows else "<p>None.</p>"
    checked = "Checked: " + ", ".join(CHECKED + (DEEP_ONLY if diagnosis.deep else ())) + "."
    if not diagnosis.deep:
        checked += " Not checked: " + ", ".join(DEEP_ONLY) + " (they need every picture decoded: deep=true)."
    return found + f"<p class=sub>{escape(checked)}</p>"


def _kind_section(diagnosis: Diagnosis, kind: str, thumbnails: int) -> Iterator[str]:
    found, level = diagnosis.of_kind(kind), diagnosis.policy[kind]
    yield f'<section id="{kind}"><h3><span class="tag {level}">{_LEVEL_NAMES[level]}</span> {kind} '
    yield f"<small>{diagnosis.counts[kind]:,}</small></h3><p>{escape(ILLNESSES[kind].meaning)}</p><div class=cards>"
    for symptom in [symptom for symptom in found if symptom.pictures][:thumbnails]:
        yield _card(diagnosis, symptom)
    yield "</div>"
    listed = found[:LISTED]
    yield f"<details{'' if any(s.pictures for s in found) else ' open'}><summary>{len(listed)} listed</summary><ul>"
    yield from (f"<li>{escape(one_line(symptom))}</li>" for symptom in listed)
    rest = diagnosis.counts[kind] - len(listed)
    yield f"</ul>{f'<p>… and {rest:,} more</p>' if rest > 0 else ''}</details></section>"


def _card(diagnosis: Diagnosis, symptom: Symptom) -> str:
    """A finding as a card with the picture, or the first two of a group of duplicates."""
    several = "duplicate" in symptom.kind and len(symptom.pictures) > 1
    figures = []
    for picture in symptom.pictures[: 2 if several else 1]:
        chosen = symptom.boxes if not several else ()
        shown = _thumbnail(diagnosis, picture, chosen)
        split = split_of(diagnosis.dataset, picture)
        name = one_line(diagnosis.dataset.paths[picture]) + (f" ({split})" if split else "")
        figures.append(f"<figure>{shown}<figcaption>{escape(name)}</figcaption></figure>")
    where = f"<b>{escape(symptom.where)}</b> " if symptom.where and not several else ""
    text = f"<p>{where}{escape(one_line(symptom.message))}</p>"
    return f"<div class=card><div class=pair>{''.join(figures)}</div>{text}</div>"


def _thumbnail(diagnosis: Diagnosis, picture: int, chosen: Sequence[int]) -> str:
    dataset = diagnosis.dataset
    try:
        rgb = read_picture(dataset.picture_path(picture))
    except ImageError as error:
        return f"<div class=broken>{escape(one_line(error.reason))}</div>"
    height, width = rgb.shape[:2]
    record = dataset[picture]
    boxes, labels = record.boxes_xyxy, record.labels
    order = list(chosen) or list(range(len(labels)))
    left, top, right, bottom = _surroundings(boxes[order] if chosen else boxes[:0], width, height)
    scale = min(1.0, THUMBNAIL_PX / max(left + width + right, top + height + bottom))
    small_wh = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(np.ascontiguousarray(rgb)).resize(small_wh, Image.Resampling.BOX)
    corner = round(left * scale), round(top * scale)
    size_wh = corner[0] + small_wh[0] + round(right * scale), corner[1] + small_wh[1] + round(bottom * scale)
    canvas = Image.new("RGB", size_wh, BEYOND_RGB)
    canvas.paste(small, corner)
    names = [dataset.class_map.names[label] for label in labels[order]]
    shown = boxes[order].astype(np.float64) * np.tile([small_wh[0] / width, small_wh[1] / height], 2)
    shown += np.tile(corner, 2)
    captions = names if len(names) <= 6 else [""] * len(names)
    drawn = draw_boxes(np.asarray(canvas), shown, captions, [int(i) for i in labels[order]], line_width=2)
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" width="{drawn.width}" height="{drawn.height}" src="data:image/jpeg;base64,{data}">'


def _surroundings(boxes_xyxy: NDArray[np.float32], width: int, height: int) -> list[float]:
    """Pixels to show left, above, right and below for boxes that leave a picture; its longer side twice at most."""
    if not len(boxes_xyxy):
        return [0.0] * 4
    beyond = np.array([*-boxes_xyxy[:, :2].min(axis=0), *(boxes_xyxy[:, 2:].max(axis=0) - (width, height))])
    return [float(1.05 * px) for px in np.clip(beyond, 0, 2 * max(width, height))]


def _statistics(diagnosis: Diagnosis) -> Iterator[str]:
    dataset = diagnosis.dataset
    yield "<h2>Classes</h2>"
    counts = class_counts(dataset)
    total = np.bincount(dataset.columns.labels, minlength=len(dataset.class_map))
    order = np.argsort(-total, kind="stable")[:MOST_CLASSES].tolist()
    parts = [(role or "no split", [int(values[i]) for i in order]) for role, values in counts.items()]
    yield bars([dataset.class_map.names[i] for i in order], parts, unit="boxes")
    if len(order) < len(total):
        yield f"<p class=sub>The {len(order)} most frequent of {len(total)} classes.</p>"
    yield "<h2>Sizes of the boxes</h2><p class=sub>Root of the area, in pixels of the picture.</p>"
    sides = np.sqrt(box_area(dataset.columns.boxes_xyxy))
    groups = np.bincount(np.clip(np.digitize(sides, _SIZE_EDGES) - 1, 0, None), minlength=len(_SIZE_EDGES))
    names = [f"{a} to {b}" for a, b in itertools.pairwise(_SIZE_EDGES)]
    yield bars([*names, f"{_SIZE_EDGES[-1]} and more"], [("boxes", groups.tolist())], unit="boxes")


def _anchor_section(fit: AnchorFit) -> Iterator[str]:
    share = 100 * fit.unmatched / max(1, fit.objects)
    yield f"<h2>Default boxes of {escape(fit.model)}</h2>"
    sample = "" if fit.objects == fit.sampled_from else f" (a sample of {fit.sampled_from:,})"
    yield (
        f"<p><b>{fit.unmatched:,} of {fit.objects:,} objects{sample} ({share:.1f} %)</b> match none of the "
        f"{fit.anchors:,} default boxes at IoU 0.5; an object matches {fit.boxes_per_object:.1f} on average.</p>"
    )
    yield "<h3>What to change</h3><ul>" + "".join(f"<li>{escape(line)}</li>" for line in fit.advice) + "</ul>"
    yield "<h3>Best IoU of the objects</h3>"
    yield bars(
        [f"{i / 10:.1f} to {(i + 1) / 10:.1f}" for i in range(10)], [("objects", list(fit.histogram))], unit="objects"
    )
    titles: tuple[tuple[str, tuple[Row, ...]], ...] = (
        ("By size: side in input pixels", fit.by_size),
        ("By ratio: width to height in the input", fit.by_ratio),
        ("By level of the best box", fit.by_level),
        ("By class", tuple(sorted(fit.by_class, key=lambda row: -row[2] / row[1]))[:MOST_CLASSES]),
    )
    for title, rows in titles:
        parts = [("matched", [row[1] - row[2] for row in rows]), ("no match", [row[2] for row in rows])]
        yield f"<h3>{title}</h3>" + bars([row[0] for row in rows], parts, unit="objects", rate=True)
