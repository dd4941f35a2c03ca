"""The report of an examination as one HTML file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from multibox.data.findings import DataError
from multibox.data.records import box_area
from multibox.doctor.anchor_fit import Row
from multibox.doctor.anchors import AnchorProposal
from multibox.doctor.box_checks import class_counts
from multibox.doctor.examination import CHECKED, DEEP_ONLY, Examination
from multibox.doctor.kinds import FINDING_KINDS, CheckFinding, Level
from multibox.doctor.picture_checks import split_of
from multibox.errors import ImageError, OptionError, one_line
from multibox.files import atomic_write
from multibox.html import Html, Mark, bars, details, gallery, page, picture, table, tag, tiles
from multibox.pictures.draw import class_colour
from multibox.pictures.read import read_picture
from multibox.pictures.reduced import reduced_jpeg

__all__ = ["write_report"]

THUMBNAIL_PX = 280
LISTED = 50
MOST_CLASSES = 100
MOST_CAPTIONS = 6
_SIZE_EDGES = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LEVEL_NAMES: dict[Level, str] = {
    "error": "error",
    "fix": "warning, repairable",
    "warn": "warning",
    "ignore": "ignored",
}


def write_report(
    examination: Examination, path: str | os.PathLike[str], *, changes: Sequence[str] = (), thumbnails: int = 6
) -> None:
    """Write the report.

    Args:
        examination: what was found.
        path: an .html file, replaced if it exists.
        changes: what a repaired copy changed, a line each.
        thumbnails: the most findings of a kind that are shown as pictures.

    Raises:
        OptionError: the name does not end in .html.
        DataError: the file cannot be written; an earlier one of that name stays.
    """
    target = Path(path)
    if target.suffix.lower() not in {".html", ".htm"}:
        raise OptionError(f"report must be an .html file, got {str(path)!r}")
    origin = one_line(examination.dataset.origin or str(examination.dataset.root))
    try:
        atomic_write(target, page("Data report", _parts(examination, changes, thumbnails), subtitle=origin))
    except OSError as error:
        raise DataError(target, f"cannot be written ({error.strerror})", "choose another place") from None


def _parts(examination: Examination, changes: Sequence[str], thumbnails: int) -> Iterator[Html]:
    dataset = examination.dataset
    yield tag("p", examination.in_short(), class_=f"status {examination.status}")
    codes, splits = dataset.columns.split_codes, enumerate(dataset.columns.split_names)
    counts = [(len(dataset), "pictures"), (dataset.num_boxes, "boxes"), (len(dataset.class_map), "classes")]
    counts += [(int((codes == code).sum()), f"in {name}") for code, name in splits if name in dataset.splits]
    yield tiles((f"{count:,}", name) for count, name in counts)
    yield tag("h2", "Findings")
    yield _overview(examination)
    for level in ("error", "fix", "warn"):
        for kind in examination.level(level):
            yield from _of_kind(examination, kind, thumbnails)
    if changes:
        yield tag("h2", "Repaired copy")
        yield details(f"{len(changes)} changes", map(one_line, changes))
    yield from _statistics(examination)
    if examination.anchors is not None:
        yield from _anchors(examination.anchors, examination.model)


def _overview(examination: Examination) -> Html:
    rows = [
        [
            tag("span", _LEVEL_NAMES[level], class_=f"level {level}"),
            tag("a", kind, href=f"#{kind}") if level != "ignore" else kind,
            f"{count:,}",
            FINDING_KINDS[kind].meaning,
            FINDING_KINDS[kind].repair or "",
        ]
        for level in ("error", "fix", "warn", "ignore")
        for kind, count in examination.level(level).items()
    ]
    head = ("level", "kind", "count", "what it means", "in a repaired copy")
    found = table(head, rows, numbers=(2,)) if rows else tag("p", "None.")
    checked = f"Checked: {', '.join(CHECKED + (DEEP_ONLY if examination.deep else ()))}."
    if not examination.deep:
        checked += f" Not checked: {', '.join(DEEP_ONLY)} (they need every picture decoded: deep=true)."
    return Html(found + tag("p", checked, class_="note"))


def _of_kind(examination: Examination, kind: str, thumbnails: int) -> Iterator[Html]:
    found, level, count = examination.of_kind(kind), examination.policy[kind], examination.counts[kind]
    label = tag("span", _LEVEL_NAMES[level], class_=f"level {level}")
    yield tag("h3", label, f" {kind} ", tag("small", f"{count:,}"), id=kind)
    yield tag("p", FINDING_KINDS[kind].meaning)
    shown = [finding for finding in found if finding.pictures]
    if shown and thumbnails:
        yield gallery((_card(examination, finding), {}) for finding in shown[:thumbnails])
    more = [f"… and {count - LISTED:,} more"] if count > LISTED else []
    yield details(f"{min(len(found), LISTED)} listed", [*map(one_line, found[:LISTED]), *more], open_=not shown)


def _card(examination: Examination, finding: CheckFinding) -> Html:
    """A finding as a card with the picture, or the first two of a group of duplicates."""
    several = "duplicate" in finding.kind and len(finding.pictures) > 1
    figures = [
        _thumbnail(examination, index, () if several else finding.boxes) for index in finding.pictures[: 1 + several]
    ]
    where = "" if several else finding.where
    return Html(tag("div", *figures, class_="pair") + tag("p", tag("b", where), " ", one_line(finding.message)))


def _thumbnail(examination: Examination, index: int, chosen: Sequence[int]) -> Html:
    """The picture with the boxes chosen, or with all of them."""
    dataset = examination.dataset
    split = split_of(dataset, index)
    name = one_line(dataset.paths[index]) + (f" ({split})" if split else "")
    try:
        jpeg, size_wh, scale = reduced_jpeg(read_picture(dataset.picture_path(index)), THUMBNAIL_PX)
    except ImageError as error:
        return tag("figure", tag("div", one_line(error.reason), class_="missing"), tag("figcaption", name))
    record = dataset[index]
    order = list(chosen) or list(range(len(record)))
    names = dataset.class_map.names
    marks = []
    for box in order:
        red, green, blue = class_colour(int(record.labels[box]))
        x1, y1, x2, y2 = (record.boxes_xyxy[box].astype(np.float64) * scale).tolist()
        label = names[record.labels[box]] if len(order) <= MOST_CAPTIONS else ""
        marks.append(Mark((x1, y1, x2, y2), f"#{red:02x}{green:02x}{blue:02x}", label))
    return picture(jpeg, size_wh, marks, caption=name)


def _statistics(examination: Examination) -> Iterator[Html]:
    dataset = examination.dataset
    yield tag("h2", "Classes")
    counts = class_counts(dataset)
    total = np.bincount(dataset.columns.labels, minlength=len(dataset.class_map))
    order = np.argsort(-total, kind="stable")[:MOST_CLASSES].tolist()
    parts = [(role or "no split", [int(values[i]) for i in order]) for role, values in counts.items()]
    yield bars([dataset.class_map.names[i] for i in order], parts)
    if len(order) < len(total):
        yield tag("p", f"The {len(order)} most frequent of {len(total)} classes.", class_="note")
    yield tag("h2", "Sizes of the boxes")
    yield tag("p", "Root of the area, in pixels of the picture.", class_="note")
    sides = np.sqrt(box_area(dataset.columns.boxes_xyxy))
    groups = np.bincount(np.clip(np.digitize(sides, _SIZE_EDGES) - 1, 0, None), minlength=len(_SIZE_EDGES))
    names = [f"{a} to {b}" for a, b in itertools.pairwise(_SIZE_EDGES)]
    yield bars([*names, f"{_SIZE_EDGES[-1]} and more"], [("boxes", groups.tolist())])


def _anchors(proposal: AnchorProposal, model: str) -> Iterator[Html]:
    yield tag("h2", f"Default boxes of {model}")
    rows = [("present boxes", proposal.before, proposal.held_out_before)]
    rows += [("proposed boxes", proposal.after, proposal.held_out_after)] if proposal.changed else []
    yield table(
        ("", "objects", "matched at IoU 0.5", "held out: matched", "mean best IoU", "boxes per object"),
        [
            [name, f"{fit.objects:,}", f"{100 * fit.share:.1f} %", f"{100 * held_out.share:.1f} %",
             f"{fit.mean_iou:.3f}", f"{fit.boxes_per_object:.1f}"]
            for name, fit, held_out in rows
        ],
        numbers=range(1, 6),
    )  # fmt: skip
    told = "The proposed boxes were fitted to every second picture and tested on the others, which are held out."
    told += " `multibox anchors` shows and saves them; `multibox train … anchors=fit` trains with them."
    yield tag("ul", *(tag("li", line) for line in [*([told] if proposal.changed else []), *proposal.notes]))
    tables: tuple[tuple[str, Sequence[Row]], ...] = (
        ("By level of the best box", proposal.before.by_level),
        ("By class", sorted(proposal.before.by_class, key=lambda row: -row[2] / max(1, row[1]))[:MOST_CLASSES]),
    )
    for title, table_rows in tables:
        known = [row for row in table_rows if row[1]]
        parts = [("matched", [row[1] - row[2] for row in known]), ("no match", [row[2] for row in known])]
        yield tag("h3", title)
        yield bars([row[0] for row in known], parts, rate=True)
