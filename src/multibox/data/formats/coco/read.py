"""COCO JSON: a file for each split, boxes [x, y, width, height] in pixels, ids that start anywhere and have gaps."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.class_lists import class_list_files, usable_area, whole_number
from multibox.data.columns import flag_bits
from multibox.data.contents import json_of
from multibox.data.entries import Evidence
from multibox.data.findings import DataError
from multibox.data.formats.coco.classes import Categories
from multibox.data.formats.coco.write import ANNOTATION_FOLDER
from multibox.data.formats.json_files import files_that_hold, objects_in
from multibox.data.names import split_in_file_name
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_mask, around_points, numbers
from multibox.data.tree import Tree, folder_of, stem_of

__all__ = ["evidence", "read"]

_NOT_KEPT = ("segmentation", "keypoints", "caption")
_TAKEN = object()
"""Stands in the list of annotations for one that was put away while the file was parsed."""


def holds(data: Any) -> bool:
    """Whether a JSON file, or its start, is COCO's."""
    if not isinstance(data, dict):
        return False
    images, annotations = data.get("images"), data.get("annotations")
    if isinstance(images, list) and images:
        return isinstance(images[0], dict) and "id" in images[0] and ("file_name" in images[0] or "annotations" in data)
    if isinstance(annotations, list) and annotations:
        return isinstance(annotations[0], dict) and "image_id" in annotations[0]
    return isinstance(images, list) and isinstance(data.get("categories"), list)


def evidence(tree: Tree) -> Evidence | None:
    """The COCO files of a tree."""
    if tree.is_file:
        return Evidence("a .json file") if files_that_hold(tree, holds) else None
    files = _files(tree)
    return Evidence(f"found {files[0]}") if files else None


def _files(tree: Tree) -> list[str]:
    """The files to read: those of annotations/ first, and of these the ones with boxes (instances_…)."""
    files = files_that_hold(tree, holds)
    inner = [file for file in files if file.casefold().startswith(f"{ANNOTATION_FOLDER}/")]
    instances = [file for file in inner if file.rpartition("/")[2].startswith("instances")]
    top = [file for file in files if "/" not in file]
    return instances or inner or top or files


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a COCO JSON file, or those of a folder.

    The split of a picture is its own entry "split" if it has one, else the file's, by its name without a year, or its
    folder. Pictures are looked for in `images`, or else in the customary places around the file. Labels are the ranks
    of the category ids, which stay in `ClassMap.ids`.

    Raises:
        DataError: no COCO file, or files that disagree about their categories.
    """
    place = tree.place
    if tree.is_file and place.parent.name.casefold() == ANNOTATION_FOLDER:
        tree = Tree(place, place.parent.parent)
    files = tree.annotations(".json") if tree.is_file else _files(tree)
    if not files:
        raise DataError(place, "holds no COCO JSON file", "give the file, or the folder that contains annotations/")
    reading = Reading(place, tree, pictures=None if images is None else Tree(images))
    reading.meet(files=len(files))
    categories = Categories()
    owners: list[NDArray[np.int64]] = []
    for file in files:
        found = _File(reading, file, categories)
        if reading.read(file, found.parse) is not None:
            owners.append(found.add_pictures())
    if not owners:
        reading.raise_failure()
    if not tree.is_file:
        _note_others(reading, tree, files)
    if split is None:
        reading.note_unlisted()
    class_map, relabel = categories.finish(reading)
    return reading.finish("", class_map=class_map, relabel=relabel, pictures=np.concatenate(owners))


def _note_others(reading: Reading, tree: Tree, files: list[str]) -> None:
    others = [file for file in tree.annotations(".json") if file not in {*files, *class_list_files(tree)}]
    reading.meet(files=len(others))
    for file in others:
        reading.pass_over(file, f"it was not read besides {files[0]}; give it alone to read it")


class _File:
    """One JSON file. Annotations go into arrays while it is parsed, so that their dictionaries never exist together."""

    def __init__(self, reading: Reading, file: str, categories: Categories) -> None:
        self._reading, self._file, self._categories = reading, file, categories
        self._findings, self._builder = reading.findings, reading.builder
        self._path = reading.tree.root / file
        self._picture_ids: list[Any] = []
        self._category_ids: list[Any] = []
        self._where: list[Any] = []
        self._not_kept = self._from_shapes = self._pictures_seen = 0
        self._data: dict[str, Any] = {}

    def parse(self, content: bytes) -> bool:
        """Take the file apart; see `Reading.read`."""
        try:
            data = json_of(content, hook=self._take)
        except (ValueError, RecursionError):
            self._discard()
            raise
        annotations = data.get("annotations") if isinstance(data, dict) else None
        listed = annotations.count(_TAKEN) if isinstance(annotations, list) else 0
        pictures = data.get("images") if isinstance(data, dict) else None
        if listed != len(self._picture_ids) or self._pictures_seen != (
            len(pictures) if isinstance(pictures, list) else 0
        ):
            # Something that looks like an annotation lies elsewhere, such as in a list of deleted ones.
            self._discard()
            data = json_of(content)
            for position, entry in enumerate(self._annotations(data)):
                if isinstance(entry, dict):
                    data["annotations"][position] = self._take(entry)
        self._check(data)
        self._data = data
        return True

    def _discard(self) -> None:
        """Forget what was put away from the wrong place."""
        self._builder.remove_last(len(self._picture_ids))
        self._picture_ids, self._category_ids, self._where = [], [], []
        self._not_kept = self._from_shapes = 0

    def _check(self, data: Any) -> None:
        if isinstance(data, list):
            raise DataError(
                self._path, "is a list (COCO results?), not a data set", "give the file with images and categories"
            )
        if not isinstance(data, dict) or not isinstance(data.get("images"), list):
            raise DataError(self._path, 'has no list under "images"', "give a COCO instances file")
        self._annotations(data)
        self._class_ids = self._categories.add(self._path, data)

    def _annotations(self, data: Any) -> list[Any]:
        found = data.get("annotations") if isinstance(data, dict) else None
        if found is not None and not isinstance(found, list):
            raise DataError(self._path, 'has something else than a list under "annotations"', "write them as a list")
        return found or []

    def _take(self, found: dict[str, Any]) -> Any:
        """Put an annotation away; leave every other object, and annotations that cannot be read, to the parser."""
        if "image_id" not in found or not ("bbox" in found or "segmentation" in found):
            self._pictures_seen += "file_name" in found
            return found
        area = found.get("area")
        if area is not None and not (type(area) in (int, float) and 0 <= area < math.inf):
            area = usable_area(area, self._findings, self._file, f"annotation id {found.get('id')}")
        crowd, difficult = found.get("iscrowd"), found.get("difficult") or found.get("ignore")
        bits = flag_bits(crowd, difficult, found.get("truncated"), found.get("occluded"))
        # The label is set once the categories are known.
        try:
            x, y, width, height = found["bbox"]
            added = self._builder.add_box(0, 0, (x, y, x + width, y + height), flags=bits, area=area)
        except (KeyError, TypeError, ValueError, OverflowError):
            box = self._slowly(found)
            added = box is not None and self._builder.add_box(0, 0, box, flags=bits, area=area)
        if not added:
            return found
        self._picture_ids.append(found["image_id"])
        self._category_ids.append(found.get("category_id"))
        self._where.append(found.get("id"))
        self._not_kept += any(found.get(key) for key in _NOT_KEPT)
        return _TAKEN

    def _slowly(self, found: dict[str, Any]) -> Box | None:
        """A box in numbers written as text, or the box around polygons or a mask where none is written."""
        sides = numbers(found.get("bbox") or (), 4)
        if sides is not None:
            return sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3]
        shape = found.get("segmentation")
        if found.get("bbox") or not shape:
            return None
        if isinstance(shape, dict):
            box = around_mask(shape.get("counts"), shape.get("size"))
        else:
            rings = shape if isinstance(shape, list) and isinstance(shape[0], list) else [shape]
            around = [around_points(ring) for ring in rings]
            corners = [end for box in around if box is not None for end in (box[:2], box[2:])]
            box = None if None in around else around_points(corners)
        if box is not None:
            self._from_shapes += 1
        return box

    def add_pictures(self) -> NDArray[np.int64]:
        """Add this file's pictures to the builder; return the picture of each of its boxes, −1 where there is none."""
        reading, data = self._reading, self._data
        split = _own(data).get("split", split_in_file_name(self._file))
        entries = self._entries()
        reading.meet(pictures=len(entries), boxes=len(data.get("annotations") or ()))
        folders = self._folders(split, [name for _, name, _ in entries[:20]])
        index_of: dict[Any, int] = {}
        names: dict[Any, str] = {}
        for picture_id, name, entry in entries:
            if picture_id in index_of:
                if names[picture_id] != name:
                    reason = f"image id {picture_id!r} is used twice ({names[picture_id]}, {name})"
                    raise DataError(self._path, reason, "give each its own id")
                reading.skip_picture("duplicate_picture", name, f"image id {picture_id!r}")
                continue
            own = entry.get("split", split)
            index_of[picture_id] = reading.add_picture(
                reading.find(name, folders),
                shown=str(self._path),
                where=f"image id {picture_id!r}",
                image_id=picture_id,
                size_hw=(entry.get("height"), entry.get("width")),
                split=own if isinstance(own, str) else None,
            )
            names[picture_id] = name
        return self._resolve(index_of)

    def _entries(self) -> list[tuple[Any, str, dict[str, Any]]]:
        out = []
        for number, entry in enumerate(objects_in(self._data, "images")):
            picture_id, name = entry.get("id"), entry.get("file_name")
            if isinstance(picture_id, float) and picture_id.is_integer():
                picture_id = int(picture_id)
            if not isinstance(picture_id, (int, str)) or not isinstance(name, str) or not name:
                raise DataError(
                    self._path, f"entry {number} of images has no id or no file_name", "complete or remove it"
                )
            out.append((picture_id, name, entry))
        return out

    def _folders(self, split: str | None, names: list[str]) -> list[str]:
        """The customary folders, and first of them that in which most of the first pictures exist."""
        stem = stem_of(self._file)
        raw = stem.split("_", 1)[-1]
        places = [f"images/{raw}", raw, f"images/{split}", str(split), "images", "", folder_of(self._file)]
        if self._reading.pictures is not self._reading.tree:
            places.insert(0, "")
        has = self._reading.pictures.has
        hits = [
            (sum(has(f"{place}/{name}" if place else name) for name in names), -i) for i, place in enumerate(places)
        ]
        most, rank = max(hits)
        first = places[-rank] if most else ""
        return [first, *(place for place in dict.fromkeys(places) if place != first)]

    def _resolve(self, index_of: dict[Any, int]) -> NDArray[np.int64]:
        findings, shown = self._findings, self._file
        pictures, classes = _ById(index_of), _ById(self._class_ids)
        owners, labels, used = array("q"), array("i"), self._categories.used
        for picture_id, category_id, annotation_id in zip(
            self._picture_ids, self._category_ids, self._where, strict=True
        ):
            owner, label = pictures.find(picture_id), classes.find(category_id)
            where = f"annotation id {annotation_id}" if owner < 0 or label < 0 else ""
            if owner < 0:
                message = f"no picture has the id {picture_id!r}; the box is lost"
                findings.add("unknown_picture", shown, where, message, lost=1)
            elif label < 0:
                message = f"no category has the id {category_id!r}; the box is lost"
                findings.add("unknown_class", shown, where, message, lost=1)
            else:
                used.add(label)
            owners.append(owner if label >= 0 else -1)
            labels.append(max(label, 0))
        self._builder.set_last_labels(labels)
        for count, what in ((pictures.converted, "image_id"), (classes.converted, "category_id")):
            if count:
                message = f"{what} of an annotation is text where the ids of the list are numbers, or the reverse"
                findings.add("ids_compared", shown, "", message, count=count)
        self._report_rest()
        return np.array(owners, np.int64)

    def _report_rest(self) -> None:
        for entry in self._data.get("annotations") or ():
            if entry is _TAKEN:
                continue
            where = f"annotation id {entry.get('id')}" if isinstance(entry, dict) else "annotations"
            placeless = isinstance(entry, dict) and not entry.get("bbox") and not entry.get("segmentation")
            if placeless and ("caption" in entry or entry.get("keypoints")):
                self._reading.account.shapes_named += 1
                self._findings.add("no_box", self._file, where, "it has a caption or key points, but no box")
                continue
            shown = repr(entry.get("bbox"))[:80] if isinstance(entry, dict) else repr(entry)[:80]
            self._findings.add("unparsable_box", self._file, where, f"bbox is {shown}; the box is lost", lost=1)
        if self._from_shapes:
            message = "an annotation has a polygon or mask and no box; the box around it was taken"
            self._findings.add("polygon_to_box", self._file, "", message, count=self._from_shapes)
        if self._not_kept:
            message = "segmentations or key points beside a box are not kept"
            self._findings.add("detail_not_kept", self._file, "", message, count=self._not_kept)


class _ById:
    """Finds things by their ids; a number and its text are one id where only one thing has it."""

    def __init__(self, table: dict[Any, int]) -> None:
        self._table = table
        self._by_number: dict[int, int] | None = None
        self.converted = 0

    def find(self, key: Any) -> int:
        """The index of a thing, −1 where there is none."""
        try:
            found = self._table.get(key)
        except TypeError:  # a list or an object in place of an id
            return -1
        if found is not None:
            return found
        number = whole_number(key)
        if number is None:
            return -1
        if self._by_number is None:
            numbered = [(whole_number(known), index) for known, index in self._table.items()]
            once = {n for n, _ in numbered if n is not None}
            counts = {n: sum(1 for m, _ in numbered if m == n) for n in once} if len(once) < len(numbered) else {}
            self._by_number = {n: index for n, index in numbered if n is not None and counts.get(n, 1) == 1}
        found = self._by_number.get(number, -1)
        self.converted += found >= 0
        return found


def _own(data: dict[str, Any]) -> dict[str, Any]:
    info = data.get("info")
    own = info.get("multibox") if isinstance(info, dict) else None
    return own if isinstance(own, dict) else {}
