"""A measurement as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["markdown"]

WHO = ("model", "engine", "threads", "batch")


def markdown(found: dict[str, Any]) -> str:
    """What `multibox.benchmark.benchmark` found, as tables with what they were measured on and how."""
    sizes = {name: "{} × {}".format(*about["input_hw"]) for name, about in found["models"].items()}
    data = "a made-up picture" if found["data"] is None else f"{_count(found['pictures'])} of {found['data']}"
    rows = found["rows"]
    parts = [
        "# " + ", ".join(f"{name} ({size})" for name, size in sizes.items()),
        f"{found['hardware']}; {data}; scores above {found['conf']:g}.",
        "One call after the other, from file to detections; milliseconds a call.",
        _table(
            (*WHO, "p50", "p90", "p99", "decode, resize", "network", "post", "pictures/s"),
            [(*_who(r), *_three(r["total_ms"]), *_halves(r), f"{r['pictures_per_s']:.1f}") for r in rows],
        ),
        "The network alone, without decoding and post-processing; milliseconds a call.",
        _table(
            (*WHO, "p50", "p90", "p99", "pictures/s"),
            [(*_who(r), *_three(r["network_ms"]), f"{r['network_pictures_per_s']:.1f}") for r in rows],
        ),
        "A folder in one go (`multibox predict FOLDER`), and a new process: imports and opening the model (load), the "
        "first detection after that (first), all from its start to that result (start), its peak memory in MB, and "
        "joules a picture, one call after the other, of the whole machine.",
        _table(
            (*WHO, "pictures/s", "× one by one", "load ms", "first ms", "start ms", "MB", "J"),
            [
                (
                    *_who(r),
                    *(_number(r[key], digits) for key, digits in (("folder_pictures_per_s", 1), ("folder_speedup", 2))),
                    *(_number(r[key], 0) for key in ("load_ms", "first_ms", "start_ms", "peak_mb")),
                    _number(r["joules_per_picture"], 2),
                )
                for r in rows
            ],
        ),
    ]
    if found["against"]:
        parts += _against(found["against"])
    for auto in found["auto"]:
        parts.append(
            f"engine=auto takes {auto['engine']} for {auto['model']} on this machine from now on (noted in "
            f"{auto['file']})."
            if auto["file"]
            else "The fastest engine could not be noted: the cache folder cannot be written to."
        )
    parts += [f"Note: {note}." for note in found["notes"]]
    return "\n\n".join(parts)


def _against(rows: list[dict[str, Any]]) -> list[str]:
    body = [
        (
            row["name"],
            str(row["threads"]),
            *_three(row["total_ms"]),
            *(f"{row[key]['p50']:.1f}" for key in ("network_ms", "postprocess_ms")),
        )
        for row in rows
    ]
    ratios = [
        (
            ours["model"],
            ours["engine"],
            row["name"],
            str(row["threads"]),
            *(_number(ours[key], 2) for key in ("total", "without_postprocess")),
        )
        for row in rows
        for ours in row["times_ours"]
    ]
    return [
        "torchvision's detectors on the same files, taking turns with ours within this run; milliseconds a picture.",
        _table(("torchvision", "threads", "p50", "p90", "p99", "network", "post"), body),
        "How many times as long as ours they take (median over rounds).",
        _table(("model", "engine", "torchvision", "threads", "×", "× without post"), ratios),
        "torchvision's detectors run eagerly in float32, with Pillow's decoder, their own resizing and thresholds "
        "(score_thresh 0.001 for SSDLite, 0.01 for SSD, 0.05 for Faster R-CNN), and random weights (weights=None): "
        "the network takes as long as with trained ones, but how much there is to post-process differs, so the ratios "
        "are also given without it. (What Faster R-CNN does between its two stages counts as network.)",
    ]


def _who(row: dict[str, Any]) -> tuple[str, ...]:
    return row["model"], row["engine"], str(row["threads"]), str(row["batch"])


def _three(values: dict[str, float]) -> list[str]:
    return [f"{value:.1f}" for value in values.values()]


def _halves(row: dict[str, Any]) -> list[str]:
    return [f"{row[key]['p50']:.1f}" for key in ("decode_ms", "network_ms", "postprocess_ms")]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Words to the left, numbers to the right, and columns as wide as they need, so that the source can be read too."""
    words = {i for i, name in enumerate(head) if name in ("model", "engine", "torchvision")}
    widths = [max(len(str(row[i])) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i in words else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def _count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"
