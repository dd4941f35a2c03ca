"""What all readers share: taking pictures and boxes, and accounting for them and for the annotation files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from multibox.data.annotation_files import AnnotationFiles
from multibox.data.class_lists import LabelCoder, usable_area, whole_number
from multibox.data.columns import LARGEST_PX, Builder
from multibox.data.entries import Entry, Object
from multibox.data.findings import DataError
from multibox.data.names import split_in_path, usual_split
from multibox.data.picture_files import actual_size_hw
from multibox.data.records import Dataset
from multibox.data.tree import Tree, folder_of, suffix_of
from multibox.errors import ContractError, counted, one_line
from multibox.spec.classes import ClassMap

__all__ = ["Reading"]

_NO_BOX = (math.nan,) * 4
FOREIGN_PICTURES = (".heic", ".heif", ".jxl", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2")
"""Suffixes of pictures that cameras and painters write and nothing here reads."""


class Reading(AnnotationFiles):
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
        super().__init__(source, tree, pictures or tree)
        self.builder, self.coder = Builder(), LabelCoder(class_map)

    # -------------------------------------------------------------------------------------------- pictures

    def skip_picture(self, kind: str, path: str, where: str = "", message: str = "") -> None:
        """Name a picture that was met and is not in the data set."""
        self.account.pictures_named += 1
        self.findings.add(kind, path, where, message)

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

    def add_empty(self, path: str, **details: Any) -> int | None:
        """Add a picture that has no annotation file, which counts as a picture without objects.

        Where a file nearly fits, the picture is not empty but unreadable: both are named, and None is returned.

        Args:
            path: of the picture.
            details: more arguments of `add_picture`.
        """
        self.meet(pictures=1)
        if self._lose_near_miss(path):
            return None
        self.findings.add("no_annotation_file", path)
        return self.add_picture(path, shown=path, **details)

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
            message = f"{path} has other annotations, which were read; {counted(lost, 'box is', 'boxes are')} lost"
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

    def _left(self) -> Iterator[tuple[str, str | None]]:
        """(path, split in its folders where nothing of that split was read) of each picture that nothing is said of."""
        known = self._splits | {split_in_path(path) for path in self.claimed}
        homes = {folder_of(path) for path in self.claimed}
        for path in self.pictures.pictures_in(homes) if self.pictures.is_file else self.pictures.pictures:
            if path not in self.claimed and path not in self._spoilt:
                split = split_in_path(path)
                yield path, None if split in known else split

    def add_unannotated(self) -> None:
        """Add the pictures beside annotated ones that have no annotation file: they count as without objects."""
        homes = {folder_of(path) for path in self.claimed}
        for path, lone_split in list(self._left()):
            if lone_split is None and folder_of(path) in homes:
                self.add_empty(path, split=split_in_path(path))

    def lose_split(self, split: str | None, paths: Sequence[str], hint: str = "") -> None:
        """Name a split whose pictures, which were met, all lack an annotation file: they are no empty pictures."""
        self.spoil(*paths)
        self.account.pictures_named += len(paths)
        shown = split or "the pictures without a split"
        shown_pictures = f"{counted(len(paths), 'picture')}, {paths[0]} …"
        message = f"no picture of it has an annotation file ({shown_pictures}); none was read"
        hint = hint or "put the annotation files where those of the other splits lie, or remove the pictures"
        failure = DataError(self.source, f"{shown}: {message}", hint)
        self._first_failure = self._first_failure or failure
        self.findings.add("split_without_annotations", shown, "", f"{message}; {hint}", lost_files=len(paths))

    def note_unlisted(self, *, chosen_by: str = "") -> None:
        """Name the pictures that no annotation named: one by one beside others, by their folder elsewhere.

        Those of a split of which nothing was read are an error, unless pictures are left out on purpose.

        Args:
            chosen_by: the list or configuration that chooses pictures, if there is one.
        """
        homes = {folder_of(path) for path in self.claimed}
        elsewhere: Counter[str] = Counter()
        lone: dict[str, list[str]] = {}
        reason = f"{chosen_by} does not lead to" if chosen_by else "no annotation names"
        for path, lone_split in list(self._left()):
            if lone_split is not None and not chosen_by and not self.tree.is_file:
                lone.setdefault(lone_split, []).append(path)
            elif not chosen_by and self._near_miss(path):
                self.meet(pictures=1)
                self._lose_near_miss(path)
            elif folder_of(path) in homes:
                self.findings.add("unlisted_picture", path, "", f"{reason} this picture; it was not read")
            else:
                elsewhere[folder_of(path)] += 1
        for folder, count in elsewhere.items():
            message = f"{reason} the pictures of this folder ({count}); they were not read"
            self.findings.add("unlisted_picture", f"{folder}/", "", message)
        if elsewhere and not len(self.builder):
            message = f"{reason} any of the pictures that are there ({elsewhere.total()})"
            self._first_failure = self._first_failure or DataError(self.source, message, "correct it")
        for split, paths in lone.items():
            self.meet(pictures=len(paths))
            self.lose_split(split, paths)

    def _name_foreign_pictures(self) -> None:
        """Name the pictures of kinds that are not read, which no suffix of `PICTURE_SUFFIXES` finds."""
        for file in () if self.pictures.is_file else self.pictures.annotations(*FOREIGN_PICTURES):
            kind = suffix_of(file)[1:].upper()
            message = f"pictures of the kind {kind} are not read; convert it to JPEG or PNG, and leave its name"
            self.findings.add("picture_not_read", file, "", message)

    def _judge_passed(self) -> None:
        """Name the files that were passed over: as lost where they name pictures that nothing else is said of."""
        lost: dict[str, str] = {}
        for path, _ in self._left() if self._passed else ():
            for file in self._naming(path):
                lost.setdefault(file, path.rpartition("/")[2])
        for file, message in self._passed.items():
            if file in lost:
                message += f". It names {lost[file]}, which no other file annotates: its boxes are lost"
                self.findings.add("label_not_read", file, "", message, lost_files=1)
            else:
                self.findings.add("annotation_not_read", file, "", message)

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
        self._judge_passed()
        self._name_foreign_pictures()
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
