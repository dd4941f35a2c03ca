"""YOLO text with data.yaml: a line "class centre-x centre-y width height" for each box, in parts of the sides.

The label file of a picture lies where its path leads when the last folder `images` becomes `labels` and the suffix
.txt. What the text cannot say is kept in `multibox.jsonl` (see `sidecar`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.class_lists import usable_area
from multibox.data.columns import FLAGS, Builder, flag_bits
from multibox.data.findings import DataError
from multibox.data.formats.yolo.labels import parse_labels
from multibox.data.formats.yolo.sidecar import SIDECAR, Sidecar, check_sum
from multibox.data.formats.yolo.write import write
from multibox.data.formats.yolo.yaml import YoloConfig, find_config, load_config
from multibox.data.picture_files import actual_size_hw, pictures_below
from multibox.data.records import Dataset
from multibox.errors import ContractError
from multibox.spec.classes import ClassMap

__all__ = ["evidence", "read", "write"]

LIST_SUFFIX = ".txt"
_NO_LABELS = frozenset({"classes.txt", "labels.txt", "obj.names", "train.txt", "val.txt", "test.txt"})


def evidence(path: Path) -> str | None:
    """What makes a file or folder look like YOLO text, or None."""
    if path.is_file():
        return "a .yaml file" if path.suffix.lower() in {".yaml", ".yml"} else None
    config = find_config(path)
    if config is not None:
        return f"found {config.name}"
    labels = path / "labels"
    found = (path / "images").is_dir() and labels.is_dir() and next(labels.rglob("*.txt"), None) is not None
    return "found images/ and labels/" if found else None


def read(path: Path, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a data.yaml, or the folder that holds one (or images/, labels/ and classes.txt).

    A picture without a label file counts as a picture without objects. Sizes come from the pictures' headers.

    Raises:
        DataError: no configuration, or a folder or list that it names is missing.
        MissingDependencyError: a data.yaml needs PyYAML.
    """
    config = load_config(path)
    if images is not None:
        raise DataError(
            path,
            "is YOLO text, whose labels are found by the place of the pictures",
            "leave images= out and correct data.yaml",
        )
    reader = _Reader(config)
    entries = {**config.splits, **{name: [folder] for name, folder in reader.sidecar.folders.items()}}
    for name, places in entries.items():
        if split is None or split in (name, *_aliases(name)):
            reader.add_split(name, places)
    reader.add_missing()
    return Dataset(reader.builder.finish(), reader.class_map, config.root, findings=reader.findings)


def _aliases(name: str) -> tuple[str, ...]:
    return {"val": ("valid", "validation")}.get(name, ())


class _Reader:
    def __init__(self, config: YoloConfig) -> None:
        self._root, self._config = config.root, config
        self.findings, self.builder = config.findings, Builder()
        self.sidecar = Sidecar(config.root / SIDECAR)
        self.class_map = config.class_map
        if list(config.class_map.names) == self.sidecar.class_names:
            self.class_map = ClassMap(config.class_map.names, tuple(self.sidecar.class_ids))
        self._seen: set[str] = set()
        self._sidecar_labels: set[str] | None = None

    def add_split(self, name: str, places: list[str]) -> None:
        """Read the pictures of one split: folders, lists of files, or single pictures."""
        for place in places:
            found = self._config.resolve(place)
            used: set[str] = set()
            for picture in self._pictures(found):
                shown = self._shown(picture)
                used.add(str(self._label_file(shown)))
                if shown in self._seen:
                    self.findings.add("in_several_splits", shown, name)
                    continue
                self._seen.add(shown)
                self._add(shown, picture, name)
            if found.is_dir():  # a list of files chooses among pictures, and labels of the others are no loss
                self._report_orphans(self._label_file(self._shown(found / "any.jpg")).parent, used)

    def _shown(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix() if file.is_relative_to(self._root) else str(file)

    def _pictures(self, place: Path) -> Iterator[Path]:
        if place.is_dir():
            yield from pictures_below(place)
            return
        if place.suffix.lower() != LIST_SUFFIX:
            yield place
            return
        lines = place.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
        for line in lines:
            text = line.strip()
            if text:
                # Lists count from their own folder where they say "./", from the root otherwise; both are met.
                relative = self._root / text
                yield Path(
                    os.path.normpath(
                        relative if relative.exists() or not text.startswith("./") else place.parent / text
                    )
                )

    def _label_file(self, shown: str) -> Path:
        parts = list(Path(shown).parts)
        if "images" in parts[:-1]:
            last = len(parts) - 2 - parts[:-1][::-1].index("images")
            parts[last] = "labels"
        return (self._root / Path(*parts)).with_suffix(".txt")

    def _add(self, shown: str, picture: Path, split: str) -> None:
        known = self.sidecar.get(shown) or {}
        size_hw = actual_size_hw(picture, shown, self.findings)
        if size_hw is None and "height" in known:
            size_hw = (int(known["height"]), int(known["width"]))
        label_file = self._label_file(shown)
        text = ""
        if label_file.is_file():
            text = label_file.read_bytes().decode("utf-8-sig", "replace")
        else:
            self.findings.add("no_annotation_file", shown)
        own_split = known.get("split", split)
        try:
            index = self.builder.add_picture(shown, image_id=known.get("image_id"), size_hw=size_hw, split=own_split)
        except ContractError as error:
            raise DataError(self._root / SIDECAR, str(error), "rename the split") from None
        self._add_boxes(index, text, label_file, size_hw, known)

    def _add_boxes(
        self, index: int, text: str, label_file: Path, size_hw: tuple[int, int] | None, known: dict[str, Any]
    ) -> None:
        shown = self._shown(label_file)
        extras: dict[str, Any] = {}
        if known and (known.get("area") or any(known.get(name) for name in FLAGS)):
            if known.get("labels_crc32") == check_sum(text):
                extras = known
            else:
                self.findings.add("sidecar_stale", shown)
        marked = {name: set(extras.get(name, ())) for name in FLAGS}
        areas = extras.get("area") or []
        for row in parse_labels(text, shown, self._config, self.findings):
            where = f"line {row.line}"
            if size_hw is None:
                self.findings.add("size_unknown", shown, where, lost=1)
                continue
            height, width = size_hw
            x1, y1, x2, y2 = row.unit_xyxy
            bits = flag_bits(*(row.position in marked[name] for name in FLAGS))
            given = areas[row.position] if row.position < len(areas) else None
            area = usable_area(given, self.findings, SIDECAR, f"{shown} {where}")
            if not self.builder.add_box(
                index, row.label, (x1 * width, y1 * height, x2 * width, y2 * height), flags=bits, area=area
            ):
                self.findings.add("unparsable_box", shown, where, lost=1)

    def _report_orphans(self, folder: Path, used: set[str]) -> None:
        """Label files in a folder just read that no picture asked for."""
        for file in sorted(folder.rglob("*.txt")):
            if str(file) in used or file.name in _NO_LABELS or self._in_sidecar(file):
                continue
            lines = sum(bool(line.strip()) for line in file.read_bytes().splitlines())
            message = f"there is no picture for it; its {lines} boxes are lost"
            self.findings.add("label_without_picture", self._shown(file), "", message, lost=lines)

    def _in_sidecar(self, label_file: Path) -> bool:
        if self._sidecar_labels is None:
            self._sidecar_labels = {str(self._label_file(path)) for path in self.sidecar.paths}
        return str(label_file) in self._sidecar_labels

    def add_missing(self) -> None:
        """Pictures that were missing when the data set was written, or since: the sidecar still knows their sizes."""
        for shown in self.sidecar.paths:
            if shown not in self._seen:
                self._add(shown, self._root / shown, "")
