"""What all readers share: opening annotation files, finding pictures, taking boxes, and accounting for all of it."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from xml.etree import ElementTree
from xml.parsers import expat

from multibox.data.class_lists import LabelCoder, usable_area, whole_number
from multibox.data.columns import LARGEST_PX, Builder
from multibox.data.findings import Account, DataError, Findings
from multibox.data.names import split_in_path, usual_split
from multibox.data.picture_files import actual_size_hw
from multibox.data.records import Dataset
from multibox.data.tree import Tree, folder_of, stem_of, suffix_of
from multibox.errors import ContractError, MultiboxError
from multibox.pictures.read import PICTURE_SUFFIXES, one_line
from multibox.spec.classes import ClassMap

__all__ = ["Entry", "Evidence", "Object", "Reading", "decoded", "json_head", "json_of", "xml_of"]

HEAD_BYTES = 1 << 16
DEEPEST = 50
"""Objects and lists within each other at the start of a JSON file; annotation files have fewer than ten."""

_T = TypeVar("_T")
_NO_BOX = (math.nan,) * 4


@dataclass(frozen=True, slots=True)
class Evidence:
    """What makes a file or folder look like a format.

    Args:
        text: what was found, for people.
        sure: whether it is a mark that only this format leaves (a data.yaml, the folders of Pascal VOC), and not just
            files of its kind.
    """

    text: str
    sure: bool = True


@dataclass(slots=True)
class Object:
    """One object of an annotation file.

    Args:
        where: its place in the file.
        name: its class; None where it is given by `class_id` alone, or not at all.
        xyxy: corners (x1, y1, x2, y2) in pixels of the upright picture; None where they cannot be read.
        written: what the file says of the place, for messages.
        class_id: its class as a number; an index where there is a class list.
        flags, area: as in `Builder.add_box`; the area as written.
    """

    where: str
    name: str | None
    xyxy: Sequence[float] | None
    written: object = None
    class_id: int | None = None
    flags: int = 0
    area: object = None


@dataclass(slots=True)
class Entry:
    """What an annotation file says of one picture; the arguments are those of `Reading.add_picture` where not said.

    Args:
        picture: the name of the picture as written.
        met: how many objects and shapes the file lists for it, counted on its list.
        objects: those that could be boxes.
        others: (kind of finding, place, message) of the shapes that are none.
        notes: likewise, of what is to be known about objects that are boxes.
    """

    picture: str
    met: int = 0
    objects: list[Object] = field(default_factory=list)
    others: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    size_hw: tuple[Any, Any] = (None, None)
    image_id: int | str | None = None
    split: str | None = None


class Reading:
    """A data set while it is read.

    A reader says with `meet` what it has found before it goes into it, reads every file through `read`, and gives
    every picture and box to `add_picture` and `add_box`, which keep it or put it into the findings. `finish` proves
    that nothing was left out.

    Args:
        source: what is read, for messages.
        tree: where the annotation files lie.
        class_map: the class list, where there is one.
        pictures: where the pictures lie; `tree` when left out. Paths count from its root.
    """

    def __init__(
        self, source: object, tree: Tree, class_map: ClassMap | None = None, *, pictures: Tree | None = None
    ) -> None:
        self.source, self.tree, self.pictures = source, tree, pictures or tree
        self.findings, self.builder, self.account = Findings(), Builder(), Account()
        self.coder = LabelCoder(class_map)
        self.claimed: set[str] = set()
        self._spoilt: set[str] = set()  # pictures whose annotation file cannot be read, or is another's
        self._splits: set[str | None] = set()
        self._first_failure: DataError | None = None

    # -------------------------------------------------------------------------------------------- files

    def meet(self, *, files: int = 0, pictures: int = 0, boxes: int = 0) -> None:
        """Count what was met."""
        self.account.files_met += files
        self.account.pictures_met += pictures
        self.account.boxes_met += boxes

    def read(self, file: str, parse: Callable[[bytes], _T], *, boxes: Callable[[], int] = lambda: 0) -> _T | None:
        """What an annotation file holds; None, and a finding, where it cannot be read.

        Args:
            file: relative to the root of the tree; it was counted with `meet`.
            parse: raises ValueError where the content is damaged.
            boxes: how many boxes are lost, where that is known.
        """
        try:
            content = parse((self.tree.root / file).read_bytes())
        except MultiboxError:  # of what the file says, not of the file
            raise
        except (OSError, ValueError, RecursionError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else error
            reason = f"cannot be read ({one_line(getattr(error, 'strerror', None) or why)})"
            self.lose_file("unparsable_annotation", file, f"{reason}; its picture is not used")
            self._fail(file, reason, "write it again or copy it again")
            self._spoilt.update(self.partners(file))
            return None
        self.account.files_read += 1
        return content

    def lose_file(self, kind: str, file: str, message: str) -> None:
        """Name an annotation file that cannot be read."""
        self.account.files_named += 1
        self.findings.add(kind, file, "", message, lost_files=1)

    def lose_part(self, file: str, where: str, reason: str) -> None:
        """Name a part of an annotation file that cannot be read, while the rest can."""
        self._fail(f"{file} {where}", reason, "correct it")
        self.findings.add("unparsable_annotation", file, where, f"{reason}; its picture is not used", lost_files=1)

    def pass_over(self, file: str, message: str) -> None:
        """Name a file that was met, but holds no annotations of this format."""
        self.account.files_named += 1
        self.findings.add("annotation_not_read", file, "", message)

    def unread(self, file: str, message: str) -> None:
        """Say that a file just read holds no annotations of this format after all."""
        self.account.files_read -= 1
        self._fail(file, message, "say another format=")
        self.pass_over(file, message)

    def raise_failure(self) -> None:
        """Raise the first failure, if there was one.

        Raises:
            DataError: an annotation file cannot be read.
        """
        if self._first_failure is not None:
            raise self._first_failure

    def _fail(self, file: str, reason: str, remedy: str) -> None:
        """Keep the first failure, to be told if nothing can be read."""
        self._first_failure = self._first_failure or DataError(self.tree.root / file, reason, remedy)

    # -------------------------------------------------------------------------------------------- pictures

    def skip_picture(self, kind: str, path: str, where: str = "", message: str = "") -> None:
        """Name a picture that was met and is not in the data set."""
        self.account.pictures_named += 1
        self.findings.add(kind, path, where, message)

    def find(self, written: str, folders: Sequence[str] = ("",), *, again: bool = False) -> str:
        """The path of the picture that an annotation calls `written`; as written where there is none. See `look`."""
        return self.look(written, folders, again=again) or _joined(folders[0] if folders else "", written)

    def partners(self, file: str) -> list[str]:
        """The pictures that have the name of an annotation file, and of these the nearest to it."""
        stem = stem_of(file)
        stem = stem_of(stem) if suffix_of(stem) in PICTURE_SUFFIXES else stem  # a.jpg.json
        return _nearest(file, self.pictures.with_stem(stem))

    def partner(self, file: str, written: str) -> str:
        """The path of the picture that the annotation file `file` is for, whose content says `written`.

        The name of the file comes first: what the content says is often left over from copying. Of several pictures
        with that name, the one that is written counts.
        """
        candidates = self.partners(file)
        if not candidates:
            return self.find(written or stem_of(file), (folder_of(file), ""))
        base = re.split(r"[\\/]", written)[-1]
        chosen = next((path for path in candidates if path.rpartition("/")[2] == base), None)
        self._spoilt.update(candidates)
        for other in candidates if chosen is None else ():
            if other != candidates[0]:
                message = f"it has the name of {file}, which was read for {candidates[0]}"
                self.findings.add("same_stem", other, "", message)
        return chosen or candidates[0]

    def look(self, written: str, folders: Sequence[str] = ("",), *, again: bool = False) -> str | None:
        """The path of the picture that an annotation calls `written`, with what is to be known about it; or None.

        Args:
            written, folders: as in `Tree.find`.
            again: several entries may be about one picture, so another spelling may mean a picture that was read.
        """
        found = self.pictures.find(written, folders)
        if found.path is None:
            if found.others:
                shown = ", ".join(found.others[:3])
                self.findings.add("picture_ambiguous", written, "", f"it could be {shown}; none of them was taken")
            return None
        if found.exact:
            if found.path.startswith("../"):
                message = "it lies outside the data folder; it was read, but it is never copied or linked"
                self.findings.add("picture_outside", found.path, "", message)
            return found.path
        if found.path in self.claimed and not again:
            message = f"only {found.path} has such a name, which another annotation is for"
            self.findings.add("picture_ambiguous", written, "", message)
            return None
        self.findings.add("path_repaired", written, "", f"there is no such file; {found.path} was read")
        return found.path

    def add_picture(
        self,
        path: str,
        *,
        shown: str,
        where: str = "",
        image_id: int | str | None = None,
        size_hw: tuple[Any, Any] = (None, None),
        split: str | None = None,
    ) -> int:
        """Add a picture and return its index.

        Args:
            path: relative to the root of the pictures, or absolute.
            shown, where: the annotation file and the place in it.
            image_id: its path when left out.
            size_hw: (height, width) as declared; two None where nothing is.
            split: a name for it, an alias of train, val and test included.

        Raises:
            DataError: the path or the split cannot be kept.
        """
        self.claimed.add(path)
        split = None if split is None else usual_split(split)
        self._splits.add(split)
        try:
            return self.builder.add_picture(
                path, image_id=image_id, size_hw=self.size_hw(size_hw, shown, where), split=split
            )
        except ContractError as error:
            place = f"{shown} {where}" if where else shown
            raise DataError(place, str(error), "correct the entry") from None

    def size_hw(self, size_hw: tuple[Any, Any], shown: str, where: str = "") -> tuple[int, int] | None:
        """A declared (height, width), or None, with a finding where it is no pair of positive numbers."""
        height, width = whole_number(size_hw[0]), whole_number(size_hw[1])
        if height is not None and width is not None and 0 < height < LARGEST_PX and 0 < width < LARGEST_PX:
            return height, width
        if size_hw[0] is not None or size_hw[1] is not None:
            self.findings.add("size_unusable", shown, where)
        return None

    def actual_size_hw(self, path: str) -> tuple[int, int] | None:
        """(height, width) of the upright picture from its header, or None and a finding."""
        return actual_size_hw(self.pictures.root / path, path, self.findings)

    def spoil(self, path: str) -> None:
        """Mark a picture as one that must not be read as a picture without objects."""
        self._spoilt.add(path)

    def is_spoilt(self, path: str) -> bool:
        """Whether the annotation file of a picture cannot be read, or is another picture's."""
        return path in self._spoilt

    # -------------------------------------------------------------------------------------------- boxes

    def add_box(self, picture: int, shown: str, found: Object) -> bool:
        """Add a box; False, and a finding, where its class is unknown or its corners are no four finite numbers."""
        code = self.coder.code(found.name, found.class_id)
        if code is None:
            named = repr(found.name) if found.class_id is None else f"{found.name!r} with the number {found.class_id}"
            message = f"class {named} is not in the class list; the box is lost"
            if found.name is None and found.class_id is None:
                message = "it names no class; the box is lost"
            self.findings.add("unknown_class", shown, found.where, message, lost=1)
            return False
        area = usable_area(found.area, self.findings, shown, found.where)
        if self.builder.add_box(picture, code, found.xyxy or _NO_BOX, flags=found.flags, area=area):
            return True
        message = f"the place is {one_line(found.written)[:120]}; the box is lost"
        self.findings.add("unparsable_box", shown, found.where, message, lost=1)
        return False

    def add(self, entry: Entry, path: str, shown: str, where: str = "") -> None:
        """Add a picture with its objects; of a picture that is there already, the boxes are lost and named."""
        self.meet(pictures=1, boxes=entry.met)
        self.account.shapes_named += len(entry.others)
        for kind, place, message in entry.others:
            self.findings.add(kind, shown, place, message)
        if path in self.claimed:
            lost = entry.met - len(entry.others)
            message = f"{path} has other annotations, which were read; the {lost} boxes of these are lost"
            self.account.pictures_named += 1
            self.findings.add("several_annotations", shown, where, message, lost=lost)
            return
        picture = self.add_picture(
            path, shown=shown, where=where, image_id=entry.image_id, size_hw=entry.size_hw, split=entry.split
        )
        for kind, place, message in entry.notes:
            self.findings.add(kind, shown, place, message)
        for found in entry.objects:
            self.add_box(picture, shown, found)

    # -------------------------------------------------------------------------------------------- the end

    def add_unannotated(self) -> None:
        """Add the pictures beside annotated ones that have no annotation file: they count as without objects.

        Those of a split without a single annotation file are named instead.
        """
        homes = {folder_of(path) for path in self.claimed}
        lone: dict[str, list[str]] = {}
        for path in self.pictures.pictures:
            split = split_in_path(path)
            if path in self.claimed or path in self._spoilt:
                continue
            if split is not None and split not in self._splits:
                lone.setdefault(split, []).append(path)
            elif folder_of(path) in homes:
                self.meet(pictures=1)
                self.findings.add("no_annotation_file", path)
                self.add_picture(path, shown=path, split=split)
        for split, paths in lone.items():
            self.meet(pictures=len(paths))
            self.lose_split(split, paths)

    def lose_split(self, split: str | None, paths: Sequence[str], hint: str = "") -> None:
        """Name a split whose pictures, which were met, all lack an annotation file: they are no empty pictures."""
        self._spoilt.update(paths)
        self.account.pictures_named += len(paths)
        shown = split or "the pictures without a split"
        message = f"none of its {len(paths)} pictures ({paths[0]} …) has an annotation file; they were not read"
        hint = hint or "put the annotation files where those of the other splits lie, or remove the pictures"
        failure = DataError(self.source, f"{shown}: {message}", hint)
        self._first_failure = self._first_failure or failure
        self.findings.add("split_without_annotations", shown, "", f"{message}; {hint}", lost_files=len(paths))

    def note_unlisted(self) -> None:
        """Name the pictures that no annotation named: one by one beside others, by their folder elsewhere."""
        homes = {folder_of(path) for path in self.claimed}
        elsewhere: Counter[str] = Counter()
        for path in self.pictures.pictures_in(homes) if self.pictures.is_file else self.pictures.pictures:
            if path in self.claimed or path in self._spoilt:
                continue
            if folder_of(path) in homes:
                self.findings.add("unlisted_picture", path, "", "no annotation names this picture; it was not read")
            else:
                elsewhere[folder_of(path)] += 1
        for folder, count in elsewhere.items():
            message = f"no annotation names the pictures of this folder ({count}); they were not read"
            self.findings.add("unlisted_picture", f"{folder}/", "", message)

    def finish(self, remedy: str, *, class_map: ClassMap | None = None, **columns: Any) -> Dataset:
        """The data set, once everything is accounted for.

        Args:
            remedy: what to do where no class is named anywhere.
            class_map: the class list, where the labels of the builder belong to it already.
            columns: more arguments of `Builder.finish`.

        Raises:
            DataError: nothing of it could be read (the first failure is told), or something was met and not accounted.
        """
        if not len(self.builder):
            self.raise_failure()
        if class_map is None:
            try:
                class_map, columns["relabel"] = self.coder.finish(self.source, self.findings, remedy)
            except DataError:
                self.raise_failure()  # the first error, of which this one may be a consequence
                raise
        return Dataset(
            self.builder.finish(**columns),
            class_map,
            self.pictures.root,
            findings=self.findings,
            account=self.account,
        )


def _joined(folder: str, written: str) -> str:
    absolute = written.startswith(("/", "\\")) or "://" in written or written[1:2] == ":"
    return written if absolute or not folder else f"{folder}/{written}"


def _nearest(file: str, paths: Sequence[str]) -> list[str]:
    """The paths that share most folders with a file: those of its own folder first, then by common start."""
    if len(paths) < 2:
        return list(paths)
    own = folder_of(file).split("/")

    def distance(path: str) -> tuple[bool, int]:
        folders = folder_of(path).split("/")
        common = 0
        while common < min(len(own), len(folders)) and own[common].casefold() == folders[common].casefold():
            common += 1
        same_end = sum(a.casefold() == b.casefold() for a, b in zip(own[::-1], folders[::-1], strict=False))
        return folders != own, -(common + same_end)

    best = min(distance(path) for path in paths)
    return sorted(path for path in paths if distance(path) == best)


# ------------------------------------------------------------------------------------------------ contents


def decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with its mark.

    Raises:
        ValueError: it is neither.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    text = data.decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds zero bytes: it is no text, or in UTF-16 without a mark")
    return text


def json_of(data: bytes, *, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32.

    Args:
        data: the file.
        hook: called with every object once it is complete; what it returns takes the object's place.

    Raises:
        ValueError: it is damaged, or, where there is no hook, an object has two lists or objects under one key, of
            which one would be lost.
    """
    text = data.decode(json.detect_encoding(data))
    try:
        return json.loads(text, object_hook=hook, object_pairs_hook=None if hook else _without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value is not found[key] and isinstance(value, (list, dict)) and value:
                raise ValueError(f"it has two entries {key!r} in one object")
    return found


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)


def json_head(data: bytes) -> Any:
    """What the start of a JSON file holds, every value that is complete; None for what is no JSON."""
    try:
        text = data.decode(json.detect_encoding(data), "ignore")
    except ValueError:
        return None
    if len(data) < HEAD_BYTES:
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    closing: list[str] = []
    keep = (0, "")
    before = ""
    for token in _TOKEN.finditer(text):
        part, end = token[0], token.end()
        is_key = closing[-1:] == ["}"] and before in {"{", ","}
        if part in "{[":
            closing.append("}" if part == "{" else "]")
            if len(closing) > DEEPEST:
                return None
        elif part in "}]":
            if not closing:
                return None
            closing.pop()
        if part not in ",:" and not is_key and end < len(text):
            keep = (end, "".join(reversed(closing)))
        before = part
    try:
        return json.loads(text[: keep[0]] + keep[1])
    except (ValueError, RecursionError):
        return None


def xml_of(data: bytes) -> ElementTree.Element:
    """The root of an XML file, all tags as local names in lower case.

    Raises:
        ValueError: it is damaged, or declares entities, which can blow a small file up.
    """
    try:
        # Without a document type there are no declarations; UTF-16 hides it from this look and has zero bytes.
        if b"<!DOCTYPE" in data or b"\0" in data:
            _refuse_entities(data)
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, expat.ExpatError, LookupError) as error:
        raise ValueError(str(error)) from None
    for element in root.iter():
        tag = element.tag
        if isinstance(tag, str) and not (tag.islower() and tag.isalnum()):
            element.tag = tag.rpartition("}")[2].lower()
    return root


def _refuse_entities(data: bytes) -> None:
    def refuse(*_: object) -> None:
        raise ElementTree.ParseError("it declares entities")

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    parser.Parse(data, True)
