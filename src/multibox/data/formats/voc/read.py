"""Pascal VOC: an XML file for each picture, in Annotations/ or beside the pictures.

VOC counts pixels from 1 and includes the last one, so its (xmin, ymin, xmax, ymax) covers, between pixel edges,
(xmin − 1, ymin − 1, xmax, ymax). What VOC has no element for is written as extra ones that its readers skip: <crowd>
and <area> in an object, <image_id> in the annotation. `classes.json` beside the folders keeps the class list.

Elements are known by their local names in any letter case. A file may hold several annotations, and an object several
boxes; the boxes of its parts (a head, a hand) are no objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from multibox.data.class_lists import CLASS_FILE, find_class_list
from multibox.data.columns import decode_id, flag_bits
from multibox.data.contents import xml_of
from multibox.data.entries import Entry, Evidence, Object
from multibox.data.findings import DataError
from multibox.data.formats.voc.lists import Listed, SplitLists, key_of, list_files
from multibox.data.formats.voc.write import ANNOTATIONS, CORNERS, FIRST_PIXEL, PICTURES
from multibox.data.names import is_web_address, spelling, split_in_path
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_points, around_sides, numbers
from multibox.data.tree import Tree, folder_of, stem_of, suffix_of
from multibox.pictures.read import PICTURE_SUFFIXES

__all__ = ["evidence", "read"]

SUFFIX = ".xml"
MOST_LOOKED_AT = 60
_FOLDERS = frozenset({"annotations", "annotation", "xml", "xmls", "labels", "label", "images"})
_SHAPES = ("bndbox", "polygon", "robndbox")
_FLAGS = ("crowd", "difficult", "truncated", "occluded")


def holds(root: Element) -> bool:
    """Whether an XML file is Pascal VOC's."""
    return root.tag == "annotation" or next(root.iter("bndbox"), None) is not None


def evidence(tree: Tree) -> Evidence | None:
    """The XML files of a tree that lie in a folder for them, or beside a picture with their name."""
    files = tree.annotations(SUFFIX)
    if not tree.is_file:
        beside = {key_of(path) for path in tree.pictures}
        files = [file for file in files if key_of(file) in beside or _is_layout(file)]
    step = max(1, len(files) // MOST_LOOKED_AT)
    first = next((file for file in files[::step] if _looks_right(tree.root / file)), None)
    if first is None or tree.is_file:
        return None if first is None else Evidence("a .xml file")
    folder = first.split("/")[0]
    if spelling(folder) != spelling(ANNOTATIONS):
        return Evidence(f"found {first}", sure=False)
    return Evidence(f"found {folder}/*.xml" + (" and ImageSets/" if list_files(tree.files) else ""))


def _is_layout(file: str) -> bool:
    """Whether a file lies in a folder for annotations, or its folders are only such as are named for them or splits."""
    folders = folder_of(file).split("/") if "/" in file else []
    if folders and spelling(folders[0]) in _FOLDERS:
        return True
    return all(spelling(folder) in _FOLDERS or split_in_path(f"{folder}/x") for folder in folders)


def _looks_right(path: Path) -> bool:
    try:
        return holds(xml_of(path.read_bytes()))
    except ValueError:
        return True  # damaged, which the reader says


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read Pascal VOC.

    The split of a picture is that of the lists in ImageSets/Main, or else a folder named like one. Every picture is
    read once: it belongs to the first list that names it, in the order train, val, test, others; trainval only for
    what no other list names. Where there are lists and a class list, only the wanted split is read.

    Raises:
        DataError: there are no annotation files, or there is no list for the wanted split.
    """
    reading = Reading(tree.place, tree, find_class_list(tree), pictures=None if images is None else Tree(images))
    files = tree.annotations(SUFFIX)
    if not files and not (tree.root / ANNOTATIONS).is_dir():
        raise DataError(tree.place, f"has no .xml file in {ANNOTATIONS}/ or beside the pictures", "check the path")
    lists = SplitLists(reading, split)
    reader = _Reader(reading, files)
    if lists:
        reader.add_listed(lists)
    if split is None or not lists or not reading.coder.is_closed:  # the class list must not depend on the split
        reader.add_others(bool(lists), tell=split is None)
    if split is None:
        reader.note_class_lists(lists)
        reading.note_unlisted(chosen_by=lists.folder if lists else "")
    return reading.finish(f"add a {CLASS_FILE} or classes.txt with the class names")


class _Reader:
    def __init__(self, reading: Reading, files: list[str]) -> None:
        self._reading = reading
        self._files = sorted(files, key=lambda file: (folder_of(file), stem_of(file)))
        self._left = dict.fromkeys(self._files)
        self._by_end: dict[str, list[str]] = {}
        for file in self._files:
            parts = key_of(file).split("/")
            for start in range(len(parts)):
                self._by_end.setdefault("/".join(parts[start:]), []).append(file)
        self._ids: set[str] = set()

    def add_listed(self, lists: SplitLists) -> None:
        """Read what the lists name, in their order; a split of which no picture has an annotation file is named."""
        items = [(listed, self._file_of(listed)) for listed in lists]
        annotated = {listed.split for listed, file in items if file is not None}
        lone: dict[str | None, list[str]] = {}
        for listed, file in items:
            if file is not None:
                self._add_file(file, listed)
            elif listed.split in annotated:
                path = self._picture_of(listed)
                self._reading.add_empty(path, image_id=self._own_id(path), split=listed.split)
            else:
                lone.setdefault(listed.split, []).append(self._picture_of(listed))
        for split, paths in lone.items():
            self._reading.meet(pictures=len(paths))
            self._reading.lose_split(split, paths)

    def _file_of(self, listed: Listed) -> str | None:
        """The annotation file of a line: that in Annotations/ where several have the name."""
        found = self._by_end.get(listed.key) or self._by_end.get(listed.key.rpartition("/")[2]) or []
        usual = [file for file in found if spelling(file.split("/")[0]) == spelling(ANNOTATIONS)]
        return next((file for file in usual or found if file in self._left), None)

    def _picture_of(self, listed: Listed) -> str:
        name = listed.written.replace("\\", "/")
        found = self._reading.partners(f"{PICTURES}/{listed.key}.xml")
        named = [path for path in found if path.endswith(name)]
        return (named or found or [f"{PICTURES}/{name}" + ("" if suffix_of(name) in PICTURE_SUFFIXES else ".jpg")])[0]

    def add_others(self, has_lists: bool, *, tell: bool) -> None:
        """Read what no list names, and tell so."""
        for file in list(self._left):
            if has_lists and tell:
                message = "is in no list; it was read and belongs to no split"
                self._reading.findings.add("unlisted_picture", file, "", message)
            self._add_file(file, None if has_lists else Listed("", "", split_in_path(file)))
        if not has_lists:
            self._reading.add_unannotated()

    def _add_file(self, file: str, listed: Listed | None) -> None:
        reading = self._reading
        del self._left[file]
        reading.meet(files=1)
        root = reading.read(file, xml_of)
        if root is None:
            return
        if not holds(root):
            reading.unread(file, f"it holds <{root.tag}>, no <annotation>")
            return
        found = [*root.iter("annotation")] or [root]
        found = [element for element in found if len(found) == 1 or element.find("filename") is not None] or found
        for number, element in enumerate(found):
            entry = _entry(element)
            several = len(found) > 1
            path = reading.find(entry.picture) if several else self._picture(file, entry.picture, element)
            entry.split = None if listed is None else listed.split or split_in_path(path)
            own_id = element.findtext("image_id")
            entry.image_id = self._own_id(path if several else file) if own_id is None else decode_id(own_id)
            reading.add(entry, path, file, f"annotation {number}" if several else "")

    def _own_id(self, path: str) -> str:
        """The name without folders and suffix; the path where another picture has that name."""
        own = stem_of(path) if stem_of(path) not in self._ids else path
        self._ids.add(own)
        return own

    def _picture(self, file: str, written: str, element: Element) -> str:
        """The picture of an annotation file: by its name, by <filename>, by <path>."""
        reading = self._reading
        if reading.partners(file):
            return reading.partner(file, written)
        found = reading.look(written or stem_of(file), (folder_of(file), PICTURES, "images", ""))
        elsewhere = (element.findtext("path") or "").strip()
        if found is None and elsewhere:
            there = is_web_address(elsewhere) or (reading.pictures.root / elsewhere).is_file()
            found = elsewhere if there else None
        usual = spelling(file.split("/")[0]) == spelling(ANNOTATIONS)
        folder = PICTURES if usual and reading.pictures is reading.tree else folder_of(file)
        name = written or f"{stem_of(file)}.jpg"
        return found or (f"{folder}/{name}" if folder else name)

    def note_class_lists(self, lists: SplitLists) -> None:
        """Name the lists that were taken for a class's although there is no such class."""
        for name in lists.of_classes:
            if not any(spelling(name).startswith(f"{spelling(known)}_") for known in self._reading.coder.names()):
                message = f"its lines end in −1, 0 or 1, but there is no such class; split={name} reads it as a split"
                self._reading.findings.add("list_of_class", f"{name}.txt", "", message)


def _entry(annotation: Element) -> Entry:
    """What one <annotation> says."""
    size = annotation.find("size")
    declared = (None, None) if size is None else (size.findtext("height") or "", size.findtext("width") or "")
    entry = Entry((annotation.findtext("filename") or "").strip(), size_hw=declared)
    left = sum(1 for _ in _below(annotation, _SHAPES, without=("part", "annotation")))
    for number, found in enumerate(_below(annotation, ("object",), without=("part", "annotation")), start=1):
        shapes = [*_below(found, _SHAPES, without=("part", "object"))]
        left -= len(shapes)
        where = f"object {number}"
        # A polygon beside a box is a detail of it, and an object without any place is met as well.
        boxes = [shape for shape in shapes if shape.tag == "bndbox"] or shapes
        for shape in boxes:
            _add_object(entry, found, shape, where)
        if not boxes:
            _add_object(entry, found, None, where)
        if found.find("part") is not None or found.findtext("pose") not in {None, "", "Unspecified"}:
            entry.notes.append(("detail_not_kept", where, ""))
    for _ in range(left):
        entry.objects.append(Object("outside every <object>", None, None, "a box"))
    entry.met = len(entry.objects)
    return entry


def _below(root: Element, tags: tuple[str, ...], *, without: tuple[str, ...]) -> Iterator[Element]:
    """The elements with these tags below `root`, without those below an element with one of the tags `without`."""
    for child in root:
        if child.tag in tags:
            yield child
        if child.tag not in without:
            yield from _below(child, tags, without=without)


def _add_object(entry: Entry, found: Element, shape: Element | None, where: str) -> None:
    name = found.findtext("name")
    bits = flag_bits(*(found.findtext(flag) for flag in _FLAGS))
    box, written = (None, "not there") if shape is None else _box(shape)
    if shape is not None and shape.tag != "bndbox":
        entry.notes.append(("polygon_to_box", where, f"a {shape.tag} was replaced by the box around it"))
    area = (found.findtext("area") or "").strip()
    entry.objects.append(Object(where, name, box, written, flags=bits, area=area))


def _box(shape: Element) -> tuple[Box | None, object]:
    """The box between pixel edges, and what is written."""
    texts = {child.tag: child.text for child in shape}
    if shape.tag == "bndbox":
        corners = [texts.get(corner) for corner in CORNERS]
        found = numbers(corners)
        box = found and (found[0] - FIRST_PIXEL, found[1] - FIRST_PIXEL, found[2], found[3])
        return box or None, f"{'/'.join(CORNERS)} = {corners}"
    if shape.tag == "robndbox":  # of roLabelImg: centre, sides and an angle in radians
        angle = numbers((texts.get("angle"),)) or [math.nan]
        sides = [texts.get(key) for key in ("cx", "cy", "w", "h")]
        return around_sides(sides, pivot=(0.5, 0.5), degrees=math.degrees(angle[0])), texts
    points = [child.text for child in shape.iter() if child is not shape and child.tag[:1] in "xy" and not len(child)]
    return around_points(points), points
