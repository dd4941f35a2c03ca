"""Annotation files while a data set is read: opening them, accounting for them, and finding those that nearly fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from multibox.data.contents import may_annotate, picture_names
from multibox.data.finder import PictureFinder
from multibox.data.findings import Account, DataError
from multibox.data.names import spelling, split_in_file_name
from multibox.data.tree import Tree, suffix_of
from multibox.errors import MultiboxError, one_line

__all__ = ["NEAR_BYTES", "AnnotationFiles"]

_T = TypeVar("_T")
NEAR_BYTES = 1 << 16
"""What is looked at of a file that may be annotations."""


class AnnotationFiles(PictureFinder):
    """Each file that is met is read, or named in the findings.

    Args:
        source: what is read, for messages.
        tree: where the annotation files lie.
        pictures: where the pictures lie. Paths count from its root.
    """

    def __init__(self, source: object, tree: Tree, pictures: Tree) -> None:
        super().__init__(pictures)
        self.source, self.tree, self.account = source, tree, Account()
        self._met: set[str] = set()  # files that were read, or are named
        self._passed: dict[str, str] = {}  # files that were not read, and why
        self._near: list[str] = []  # of these, those that nearly fit a picture
        self._unsearched: list[str] = []  # of these, those that `_named` does not know yet
        self._named: dict[str, list[str]] = {}  # by the spelling of a picture's name: the files that name it
        self._splits: set[str | None] = set()  # those of which something was met
        self._first_failure: DataError | None = None

    def meet(self, *, files: int = 0, pictures: int = 0, boxes: int = 0) -> None:
        """Count what was met."""
        self.account.files_met += files
        self.account.pictures_met += pictures
        self.account.boxes_met += boxes

    def read(self, file: str, parse: Callable[[bytes], _T]) -> _T | None:
        """What an annotation file holds; None, and a finding, where it cannot be read.

        Args:
            file: relative to the root of the tree; it was counted with `meet`.
            parse: raises ValueError where the content is damaged.
        """
        try:
            content = parse((self.tree.root / file).read_bytes())
        except MultiboxError:  # of what the file says, not of the file
            raise
        except (OSError, ValueError, RecursionError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else error
            reason = f"cannot be read ({one_line(getattr(error, 'strerror', None) or why)})"
            self.lose_file("unparsable_annotation", file, f"{reason}; what it annotates is not used")
            self._fail(file, reason, "write it again or copy it again")
            self.spoil(*self.partners(file))
            self._splits.add(split_in_file_name(file))
            return None
        self.account.files_read += 1
        self._met.add(file)
        return content

    def lose_file(self, kind: str, file: str, message: str) -> None:
        """Name an annotation file that cannot be read."""
        self.account.files_named += 1
        self._met.add(file)
        self.findings.add(kind, file, "", message, lost_files=1)

    def is_met(self, file: str) -> bool:
        """Whether a file was read or named."""
        return file in self._met

    def lose_part(self, file: str, where: str, reason: str) -> None:
        """Name a part of an annotation file that cannot be read, while the rest can."""
        self._fail(f"{file} {where}", reason, "correct it")
        self.findings.add(
            "unparsable_annotation", file, where, f"{reason}; what it annotates is not used", lost_files=1
        )

    def pass_over(self, file: str, message: str) -> None:
        """Name a file that was met, but holds no annotations of this format."""
        self.account.files_named += 1
        self._passed[file] = message
        self._unsearched.append(file)

    def unread(self, file: str, message: str) -> None:
        """Say that a file just read holds no annotations of this format after all."""
        self.account.files_read -= 1
        self._met.discard(file)
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

    # -------------------------------------------------------------------------------------------- near misses

    def _lose_near_miss(self, path: str) -> bool:
        """Name the file that nearly fits a picture, which was met, and the picture; False where there is none."""
        near = self._near_miss(path)
        if near is None:
            return False
        self.account.pictures_named += 1
        self.spoil(path)
        if near in self._near:  # another picture has named it
            return True
        if self._passed.pop(near, None) is None:
            self.meet(files=1)
            self.account.files_named += 1
        self._met.add(near)
        self._near.append(near)
        message = f"it may be the annotation file of {path}, which was not read either; put it where the others are"
        self.findings.add("label_not_read", near, "", message, lost_files=1)
        return True

    def _near_miss(self, path: str) -> str | None:
        """A file not read that has the name of a picture, or names it, and looks like annotations of any format."""
        for file in () if self.tree.is_file else self.tree.named_like(path):
            if (file not in self._met or file in self._near) and path in self.partners(file):
                with (self.tree.root / file).open("rb") as stream:
                    if may_annotate(suffix_of(file), stream.read(NEAR_BYTES)):
                        return file
        return next(iter(self._naming(path)), None)

    def _naming(self, path: str) -> list[str]:
        """The files passed over that have the name of a picture in their content or in their own name."""
        while self._unsearched:
            file = self._unsearched.pop()
            names = picture_names((self.tree.root / file).read_bytes()) | picture_names(file.encode())
            for name in {spelling(name) for name in names}:
                self._named.setdefault(name, []).append(file)
        return self._named.get(spelling(path.rpartition("/")[2]), [])
