"""Where the label file of a picture lies, and what makes a text file one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from multibox.data.contents import is_label_row
from multibox.data.names import spelling
from multibox.data.tree import Tree, folder_of, stem_of

__all__ = ["SUFFIX", "label_file", "label_places", "looks_like_labels"]

SUFFIX = ".txt"
LABELS = "labels"
_PICTURE_FOLDERS = frozenset({"images", "jpegimages"})


def label_places(picture: str) -> Iterator[str]:
    """Where the label file of a picture may lie, the customary place first.

    images/train/a.jpg → labels/train/a.txt, then beside the picture, then labels/a.txt: the last folder `images` of the
    path becomes `labels`. Without such a folder, the labels may lie in a folder `labels` in the picture's or beside it.
    """
    folders, name = folder_of(picture).split("/") if "/" in picture else [], stem_of(picture) + SUFFIX
    last = max((i for i, folder in enumerate(folders) if spelling(folder) in _PICTURE_FOLDERS), default=-1)
    if last >= 0:
        yield "/".join([*folders[:last], LABELS, *folders[last + 1 :], name])
    yield "/".join([*folders, name])
    if last >= 0 and last + 1 < len(folders):
        yield "/".join([*folders[:last], LABELS, name])
    if last < 0:
        yield "/".join([*folders, LABELS, name])
        if folders:
            yield "/".join([*folders[:-1], LABELS, name])


def label_file(tree: Tree, picture: str) -> str | None:
    """The label file of a picture, in any spelling, or else one called a.jpg.txt; None where there is none."""
    if not picture.startswith("/"):
        for name in (picture, f"{picture}{SUFFIX}"):
            found = next((found for place in label_places(name) if (found := tree.spelt(place)) is not None), None)
            if found is not None:
                return found
        return None
    places = (Path(place).with_suffix(suffix) for place in label_places(picture) for suffix in (SUFFIX, ".TXT"))
    return next((str(place) for place in places if place.is_file()), None)


def looks_like_labels(path: Path) -> bool:
    """Whether a text file holds labels, by its first line that is not empty; an empty file may be one."""
    with path.open("rb") as stream:
        lines = stream.read(4096).decode("utf-8-sig", "replace").splitlines()
    first = next((line for line in lines if line.strip()), None)
    return first is None or is_label_row(first)
