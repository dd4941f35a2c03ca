"""YOLO text: a line "class centre-x centre-y width height" for each box, in parts of the picture's sides.

`layout` says where the label file of a picture lies. What the text cannot say is kept in `multibox.jsonl` (see
`sidecar`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multibox.data.annotation_files import NEAR_BYTES
from multibox.data.class_lists import class_list_files, usable_area
from multibox.data.columns import FLAGS, flag_bits
from multibox.data.contents import decoded, is_label_row, may_annotate
from multibox.data.entries import Evidence
from multibox.data.findings import DataError
from multibox.data.formats.yolo.config import YoloConfig, find_config, load_config
from multibox.data.formats.yolo.labels import parse_labels
from multibox.data.formats.yolo.layout import SUFFIX, label_file, label_places, looks_like_labels
from multibox.data.formats.yolo.sidecar import SIDECAR, Sidecar, check_sum
from multibox.data.names import spelling, split_in_path, usual_split
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.tree import Tree, folder_of, stem_of, suffix_of
from multibox.errors import counted
from multibox.pictures.read import PICTURE_SUFFIXES
from multibox.spec.classes import ClassMap

__all__ = ["evidence", "read"]

MOST_LOOKED_AT = 60


def evidence(tree: Tree) -> Evidence | None:
    """A configuration, or label files beside pictures or in a folder `labels`."""
    config = find_config(tree)
    if config is not None:
        return Evidence(f"a {suffix_of(config)} file" if tree.is_file else f"found {config}")
    texts = [] if tree.is_file else tree.annotations(SUFFIX)
    pictures = {spelling(path.rpartition(".")[0]): path for path in tree.pictures} if texts else {}
    inside = [file for file in texts if "labels" in spelling(folder_of(file)).split("/")]
    beside = [file for file in texts if spelling(file.rpartition(".")[0]) in pictures]
    for files, sure in ((inside, True), (beside, False)):
        step = max(1, len(files) // MOST_LOOKED_AT)
        first = next((file for file in files[::step] if looks_like_labels(tree.root / file)), None)
        if first is not None:
            return Evidence(f"found {folder_of(first)}/" if sure else f"found {first}", sure)
    return None


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a data.yaml or obj.data, or the folder that holds one, or label files and a class list.

    A picture without a label file counts as a picture without objects, unless no picture of its split has one. Sizes
    come from the pictures' headers.

    Raises:
        DataError: no class list, a damaged configuration, or no folder or list that it names is there.
    """
    config = load_config(tree)
    if images is not None:
        raise DataError(
            tree.place,
            "is YOLO text, whose labels are found by the place of the pictures",
            "leave images= out and correct data.yaml",
        )
    reader = _Reader(config)
    reader.add_splits(split)
    reader.add_missing(split)
    reader.report_rest(split)
    return reader.reading.finish("", class_map=reader.class_map)


class _Reader:
    def __init__(self, config: YoloConfig) -> None:
        self._config, self._tree = config, config.tree
        self.reading = Reading(config.source, config.tree, config.class_map)
        for note in config.notes:
            self.reading.findings.add("path_repaired", config.source.name, "", note)
        self.sidecar = Sidecar(config.tree.root / SIDECAR)
        self.class_map = config.class_map
        if list(config.class_map.names) == self.sidecar.class_names:
            self.class_map = ClassMap(config.class_map.names, tuple(self.sidecar.class_ids))
        self._used: dict[str, str] = {}  # label file → the picture it was read for
        self._lists: set[str] = set()

    # -------------------------------------------------------------------------------------------- pictures

    def add_splits(self, wanted: str | None) -> None:
        """Read the pictures of all splits, or of one."""
        splits = self._splits()
        chosen = {
            name: pictures
            for name, pictures in splits.items()
            if wanted is None or usual_split(name) == usual_split(wanted)
        }
        if not chosen and splits:
            there = ", ".join(usual_split(name) for name in splits)
            raise DataError(self._config.source, f"has no split {wanted!r}", f"choose one of its splits ({there})")
        missing = []
        for name, places in chosen.items():
            found = [self._pictures(place) for place in places]
            missing += [place for place, pictures in zip(places, found, strict=True) if pictures is None]
            self._add_split(name, [path for pictures in found for path in pictures or ()])
            for place, pictures in zip(places, found, strict=True):
                if pictures is None:
                    message = f"{name}: {place} is not there; correct it, or remove the line"
                    self.reading.findings.add("split_missing", self._config.source.name, "", message)
        if missing and not len(self.reading.builder):
            self.reading.raise_failure()
            reason = f"names {missing[0]}, but there is no {self._tree.root / missing[0]}"
            raise DataError(self._config.source, reason, "correct path, train, val or test in it")

    def _splits(self) -> dict[str, list[str]]:
        """The folders, lists or pictures of each split."""
        extra = {name: [folder] for name, folder in self.sidecar.folders.items()}
        if self._config.splits is not None:
            return {**self._config.splits, **extra}
        labelled = [path for path in self._tree.pictures if label_file(self._tree, path) is not None]
        homes = {folder_of(path) for path in labelled}
        named: dict[str, list[str]] = {}
        for path in self._tree.pictures:
            split = split_in_path(path)
            if split is not None or folder_of(path) in homes:
                named.setdefault(split or "", []).append(path)
        if not named and self._tree.pictures:
            named = {"": self._tree.pictures}  # without any label file, which is told
        if "" in named and len(named) == 1:
            named = {"train": named[""]}
        return {**named, **extra}

    def _pictures(self, place: str) -> list[str] | None:
        """The pictures of a folder or a list, or the one picture; None where there is no such thing."""
        if self._tree.has(place) and suffix_of(place) in PICTURE_SUFFIXES:
            return [place]
        found = self._tree.located(place)
        if found is None:
            return None
        if posixpath.normpath(place) != found:
            message = f"{place} does not exist, {found} was read"
            self.reading.findings.add("path_repaired", self._config.source.name, "", message)
        full = self._tree.root / found
        if full.is_dir():
            if found.startswith(("/", "..")):
                return [str(full / path) for path in Tree(full).pictures]
            return [path for path in self._tree.pictures if found == "." or path.startswith(f"{found}/")]
        return list(self._listed(found)) if suffix_of(found) == SUFFIX else [found]

    def _listed(self, file: str) -> Iterator[str]:
        """The pictures of a list. Lines count from the root, or from the folder of the list; both are met."""
        self._lists.add(file)
        try:
            lines = decoded((self._tree.root / file).read_bytes()).splitlines()
        except (OSError, ValueError) as error:
            raise DataError(self._tree.root / file, f"cannot be read ({error})", "save it as UTF-8") from None
        for line in filter(None, map(str.strip, lines)):
            yield self.reading.look(line, ("", folder_of(file))) or posixpath.normpath(line)

    def _add_split(self, name: str, pictures: list[str]) -> None:
        labels = {path: label_file(self._tree, path) for path in pictures}
        if pictures and not any(labels.values()) and not any(self.sidecar.get(path) for path in pictures):
            self.reading.meet(pictures=len(labels))
            self.reading.lose_split(name, list(labels), self._hint(list(labels)))
            return
        for path in pictures:
            if path in self.reading.claimed:
                self.reading.meet(pictures=1)
                self.reading.skip_picture("in_several_splits", path, name)
                continue
            self._add(path, labels[path], name or None)

    def _hint(self, pictures: list[str]) -> str:
        """What to do where no picture of a split has a label file."""
        for path in pictures:
            for file in self._texts_with_stem(path):
                return f"{file} may be the label file of {path}: it is looked for as {next(label_places(path))}"
        return ""

    def _texts_with_stem(self, picture: str) -> list[str]:
        stem = spelling(stem_of(picture))
        return [file for file in self._tree.annotations(SUFFIX) if spelling(stem_of(file)) == stem]

    def _add(self, path: str, label: str | None, split: str | None) -> None:
        reading = self.reading
        known = self.sidecar.get(path) or {}
        size_hw = reading.actual_size_hw(path)
        if size_hw is None and "height" in known:
            size_hw = (int(known["height"]), int(known["width"]))
        details: dict[str, Any] = {
            "image_id": known.get("image_id"),
            "size_hw": size_hw or (None, None),
            "split": known.get("split", split),
        }
        if label is None:
            reading.add_empty(path, **details)
            return
        reading.meet(pictures=1, files=1)
        text = reading.read(label, _rows)
        first = self._used.setdefault(label, path)
        if first != path:
            message = f"it has the label file of {first} ({label}); both have its boxes"
            reading.findings.add("same_stem", path, "", message)
        if text is None:
            reading.account.pictures_named += 1
            reading.spoil(path)
            return
        picture = reading.add_picture(path, shown=SIDECAR if known else path, **details)
        self._add_boxes(picture, text, label, size_hw, known)

    def _add_boxes(
        self, picture: int, text: str, shown: str, size_hw: tuple[int, int] | None, known: dict[str, Any]
    ) -> None:
        reading = self.reading
        reading.meet(boxes=sum(bool(line.strip()) for line in text.splitlines()))
        extras: dict[str, Any] = {}
        if known and (known.get("area") or any(known.get(name) for name in FLAGS)):
            if known.get("labels_crc32") == check_sum(text):
                extras = known
            else:
                reading.findings.add("sidecar_stale", shown)
        marked = {name: set(extras.get(name, ())) for name in FLAGS}
        areas = extras.get("area") or []
        for row in parse_labels(text, shown, self._config, reading.findings):
            where = f"line {row.line}"
            if size_hw is None:
                reading.findings.add("size_unknown", shown, where, lost=1)
                continue
            height, width = size_hw
            x1, y1, x2, y2 = row.unit_xyxy
            bits = flag_bits(*(row.position in marked[name] for name in FLAGS))
            given = areas[row.position] if row.position < len(areas) else None
            area = usable_area(given, reading.findings, SIDECAR, f"{shown} {where}")
            if not reading.builder.add_box(
                picture, row.label, (x1 * width, y1 * height, x2 * width, y2 * height), flags=bits, area=area
            ):
                reading.findings.add("unparsable_box", shown, where, lost=1)

    def add_missing(self, wanted: str | None) -> None:
        """Pictures that were missing when the data set was written, or since: the sidecar still knows their sizes."""
        for path in self.sidecar.paths:
            split = (self.sidecar.get(path) or {}).get("split")
            if wanted is not None and usual_split(split or "") != usual_split(wanted):
                continue
            if path not in self.reading.claimed and not self.reading.is_spoilt(path):
                self._add(path, label_file(self._tree, path), None)

    # -------------------------------------------------------------------------------------------- what is left

    def report_rest(self, split: str | None) -> None:
        """Name the label files that no picture asked for, and the pictures that are in no split."""
        homes = {folder_of(file) for file in self._used}
        lists = self._lists | set(class_list_files(self._tree))
        expected = {spelling(next(label_places(path))) for path in self.sidecar.paths}
        for file in self._tree.annotations(SUFFIX):
            unused = not self.reading.is_met(file) and file not in lists and spelling(file) not in expected
            if unused and (split is None or folder_of(file) in homes) and self._may_be_labels(file):
                self._report(file)
        if split is None:
            self.reading.note_unlisted(chosen_by=self._config.source.name if self._config.splits is not None else "")

    def _may_be_labels(self, file: str) -> bool:
        with (self._tree.root / file).open("rb") as stream:
            content = stream.read(NEAR_BYTES)
        return not content.strip() or may_annotate(SUFFIX, content)

    def _report(self, file: str) -> None:
        pictures = self._tree.with_stem(stem_of(file))
        lines = sum(bool(line.strip()) for line in (self._tree.root / file).read_bytes().splitlines())
        alone = [path for path in pictures if self.reading.is_spoilt(path)]
        used = [label_file(self._tree, path) for path in pictures]
        if file in used:
            return  # of a picture in no split, which is named
        kind = "label_not_read" if alone else "label_without_picture"
        if pictures and all(used) and not alone:
            self.reading.meet(files=1)
            self.reading.pass_over(file, f"{pictures[0]} has another label file")
            return
        message = f"there is no picture for it; {counted(lines, 'box is', 'boxes are')} lost"
        if alone:
            place = next(label_places(alone[0]))
            lost = counted(lines, "box is", "boxes are")
            message = f"it has the name of {alone[0]}, whose label file must be {place}; {lost} lost"
        self.reading.meet(boxes=lines)
        self.reading.findings.add(kind, file, "", message, lost=lines)


def _rows(content: bytes) -> str:
    """The text of a label file.

    Raises:
        ValueError: it is no text, or none of its lines is a row of numbers.
    """
    text = decoded(content)
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and not any(is_label_row(line) for line in lines):
        raise ValueError("none of its lines is a class number and four more numbers")
    return text
