"""Pascal VOC: Annotations/*.xml, JPEGImages/ and ImageSets/Main/<split>.txt.

VOC counts pixels from 1 and includes the last one, so its (xmin, ymin, xmax, ymax) covers, between pixel edges,
(xmin − 1, ymin − 1, xmax, ymax). What VOC has no element for is written as extra ones that its readers skip: <crowd>
and <area> in an object, <image_id> in the annotation. `classes.json` beside the folders keeps the class list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from multibox.data.class_lists import CLASS_FILE, LabelCoder, read_class_file, usable_area, whole_number
from multibox.data.columns import LARGEST_PX, Builder, decode_id, flag_bits
from multibox.data.findings import DataError, Findings
from multibox.data.formats.voc.write import ANNOTATIONS, CORNERS, FIRST_PIXEL, PICTURES, SETS, write
from multibox.data.picture_files import pictures_below
from multibox.data.records import Dataset
from multibox.errors import ContractError

__all__ = ["evidence", "read", "write"]

_KNOWN_ORDER = ("train", "val", "test")
_UNIONS = frozenset({"trainval", "all"})


def evidence(path: Path) -> str | None:
    """What makes a folder look like Pascal VOC, or None."""
    if not path.is_dir() or next((path / ANNOTATIONS).glob("*.xml"), None) is None:
        return None
    return f"found {ANNOTATIONS}/*.xml" + (" and ImageSets/" if (path / SETS).is_dir() else "")


def read(path: Path, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a Pascal VOC folder.

    Without `split` every picture that has an annotation or is listed in ImageSets/Main is read, once: it belongs to
    the first list that names it, in the order train, val, test, others; trainval only for what no other list names.
    All annotation files are read even then, unless there is a class file: the class list must not depend on the split.

    Raises:
        DataError: there is no Annotations folder, or no list for the split.
    """
    if not (path / ANNOTATIONS).is_dir():
        raise DataError(path, f"has no folder {ANNOTATIONS}/", "give the folder that contains it, such as VOC2012")
    reader = _Reader(path, images or path / PICTURES)
    for stem, name in reader.listed(split):
        reader.add(stem, name)
    remedy = f"add a {CLASS_FILE} or classes.txt with the class names"
    if split is not None and reader.class_map is None:
        reader.note_other_classes()
    class_map, relabel = reader.coder.finish(path, reader.findings, remedy)
    return Dataset(reader.builder.finish(relabel), class_map, path, findings=reader.findings)


class _Reader:
    def __init__(self, root: Path, pictures: Path) -> None:
        self._root = root
        self.findings, self.builder = Findings(), Builder()
        self.class_map = read_class_file(root / CLASS_FILE)
        self.coder = LabelCoder(self.class_map)
        self._prefix = f"{pictures.relative_to(root).as_posix()}/" if pictures.is_relative_to(root) else f"{pictures}/"
        self._files: dict[str, str] = {}
        self._stems: dict[str, str] = {}
        for file in pictures_below(pictures) if pictures.is_dir() else ():
            name = file.relative_to(pictures).as_posix()
            self._files[name] = name
            self._stems.setdefault(name.rpartition(".")[0], name)
        self._annotated = sorted(file.stem for file in (root / ANNOTATIONS).glob("*.xml"))
        self._seen: set[str] = set()

    def listed(self, split: str | None) -> Iterator[tuple[str, str | None]]:
        """(stem, split) of every picture to read, each once."""
        lists = {file.stem: file for file in sorted((self._root / SETS).glob("*.txt"))}
        # aeroplane_train.txt says for each picture of train.txt whether it shows an aeroplane.
        names = [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]
        names.sort(key=lambda n: (n in _UNIONS, _KNOWN_ORDER.index(n) if n in _KNOWN_ORDER else len(_KNOWN_ORDER), n))
        if split is not None:
            if split not in names:
                reason = f"has no list {split}.txt ({'there are ' + ', '.join(names) if names else 'it has no lists'})"
                raise DataError(self._root / SETS, reason, "choose a split it has, or add the list")
            names = [split]
        for name in names:
            yield from self._of_list(lists[name], name, wanted=split)
        if split is None:
            yield from self._unlisted(bool(names))

    def _of_list(self, file: Path, name: str, *, wanted: str | None) -> Iterator[tuple[str, str | None]]:
        try:
            lines = file.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
        except OSError as error:
            raise DataError(file, f"cannot be read ({error.strerror})", "check the file") from None
        for number, line in enumerate(lines, start=1):
            stem = line.strip()
            if not stem:
                continue
            if stem in self._seen:
                if name not in _UNIONS or wanted:
                    self.findings.add("in_several_splits", stem, f"{file.name} line {number}")
                continue
            self._seen.add(stem)
            yield stem, name

    def _unlisted(self, has_lists: bool) -> Iterator[tuple[str, str | None]]:
        for stem in self._annotated:
            if stem not in self._seen:
                if has_lists:
                    self.findings.add(
                        "unlisted_picture",
                        f"{ANNOTATIONS}/{stem}.xml",
                        "",
                        "is in no list; it was read and belongs to no split",
                    )
                self._seen.add(stem)
                yield stem, None
        for stem, name in self._stems.items():
            if stem not in self._seen and has_lists:
                self.findings.add(
                    "unlisted_picture", self._prefix + name, "", "is in no list and has no annotation; it was not read"
                )
            elif stem not in self._seen:
                yield stem, None

    def note_other_classes(self) -> None:
        """Take the classes of the annotations outside the chosen split into account."""
        for stem in self._annotated:
            if stem not in self._seen:
                tree = self._parse(self._root / ANNOTATIONS / f"{stem}.xml")
                for found in () if tree is None else tree.findall("object"):
                    self.coder.code((found.findtext("name") or "").strip() or None, None)

    def add(self, stem: str, split: str | None) -> None:
        """Read one annotation file."""
        file = self._root / ANNOTATIONS / f"{stem}.xml"
        tree = self._parse(file) if file.is_file() else None
        if tree is None:
            if not file.is_file():
                self.findings.add("no_annotation_file", f"{ANNOTATIONS}/{stem}.xml")
            self._add_picture(stem, ElementTree.Element("annotation"), split)
            return
        picture = self._add_picture(stem, tree, split)
        for number, found in enumerate(tree.findall("object"), start=1):
            self._add_object(picture, found, f"{ANNOTATIONS}/{stem}.xml", f"object {number}")

    def _parse(self, file: Path) -> ElementTree.Element | None:
        try:
            data = file.read_bytes()
            # Without a document type there are no declarations; UTF-16 hides it from this look and has zero bytes.
            if b"<!DOCTYPE" in data or b"\0" in data:
                _refuse_entities(data)
            return ElementTree.fromstring(data)
        except (OSError, ElementTree.ParseError, expat.ExpatError, LookupError, ValueError) as error:
            message = f"cannot be read ({error}); the picture is kept without its boxes"
            self.findings.add("unparsable_annotation", f"{ANNOTATIONS}/{file.name}", "", message)
            return None

    def _add_picture(self, stem: str, tree: ElementTree.Element, split: str | None) -> int:
        own_id = tree.findtext("image_id")
        try:
            return self.builder.add_picture(
                self._picture_of(stem, tree),
                image_id=stem if own_id is None else decode_id(own_id),
                size_hw=self._size_hw(stem, tree),
                split=split,
            )
        except ContractError as error:
            raise DataError(self._root / SETS, str(error), "rename the list") from None

    def _picture_of(self, stem: str, tree: ElementTree.Element) -> str:
        named = (tree.findtext("filename") or "").strip()
        # The stem comes first: it is what VOC goes by, and <filename> is often left over from copying.
        if named in self._files and named.rpartition(".")[0] == stem:
            return self._prefix + named
        name = self._stems.get(stem) or self._files.get(named)
        if name is not None:
            return self._prefix + name
        elsewhere = (tree.findtext("path") or "").strip()
        if elsewhere and (self._root / elsewhere).is_file():
            return elsewhere
        return self._prefix + (named or f"{stem}.jpg")

    def _size_hw(self, stem: str, tree: ElementTree.Element) -> tuple[int, int] | None:
        size = tree.find("size")
        if size is None:
            return None
        height, width = whole_number(size.findtext("height")), whole_number(size.findtext("width"))
        if height is not None and width is not None and 0 < height < LARGEST_PX and 0 < width < LARGEST_PX:
            return height, width
        self.findings.add("size_unusable", f"{ANNOTATIONS}/{stem}.xml")
        return None

    def _add_object(self, picture: int, found: ElementTree.Element, path: str, where: str) -> None:
        name = found.findtext("name") or ""
        code = self.coder.code(name if self.class_map else name.strip(), None)
        if code is None:
            self.findings.add(
                "unknown_class", path, where, f"class {name!r} is not in the class list; the box is lost", lost=1
            )
            return
        texts = [found.findtext(f"bndbox/{corner}") for corner in CORNERS]
        try:
            xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
        except ValueError:
            xmin = ymin = xmax = ymax = math.nan
        bits = flag_bits(*(found.findtext(flag) for flag in ("crowd", "difficult", "truncated", "occluded")))
        area = usable_area((found.findtext("area") or "").strip(), self.findings, path, where)
        box_xyxy = (xmin - FIRST_PIXEL, ymin - FIRST_PIXEL, xmax, ymax)
        if not self.builder.add_box(picture, code, box_xyxy, flags=bits, area=area):
            self.findings.add(
                "unparsable_box", path, where, f"{'/'.join(CORNERS)} are {texts}; the box is lost", lost=1
            )
        elif found.find("part") is not None or found.findtext("pose") not in {None, "", "Unspecified"}:
            self.findings.add("detail_not_kept", path, where)


def _refuse_entities(data: bytes) -> None:
    """Entities can blow a small file up; annotations have no use for them."""

    def refuse(*_: object) -> None:
        raise ElementTree.ParseError("it declares entities")

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    parser.Parse(data, True)
