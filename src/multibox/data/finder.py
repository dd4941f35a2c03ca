"""Which picture an annotation file means."""

from __future__ import annotations

import re
from collections.abc import Sequence

from multibox.data.findings import Findings
from multibox.data.tree import Tree, folder_of, picture_stem, stem_of

__all__ = ["PictureFinder"]


class PictureFinder:
    """Finds pictures by what annotation files call them; what was not as written goes into the findings.

    Args:
        pictures: where they lie. Paths count from its root.
    """

    def __init__(self, pictures: Tree) -> None:
        self.pictures, self.findings = pictures, Findings()
        self.claimed: set[str] = set()
        self._spoilt: set[str] = set()

    def spoil(self, *paths: str) -> None:
        """Mark pictures that must not be read as pictures without objects: their annotations cannot be read."""
        self._spoilt.update(paths)

    def is_spoilt(self, path: str) -> bool:
        """Whether the annotation file of a picture cannot be read, or is another picture's."""
        return path in self._spoilt

    def find(self, written: str, folders: Sequence[str] = ("",), *, again: bool = False) -> str:
        """The path of the picture that an annotation calls `written`; as written where there is none. See `look`."""
        return self.look(written, folders, again=again) or _joined(folders[0] if folders else "", written)

    def partners(self, file: str) -> list[str]:
        """The pictures that have the name of an annotation file, and of these the nearest to it."""
        return _nearest(file, self.pictures.with_stem(picture_stem(file)))

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
        self.spoil(*candidates)
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
