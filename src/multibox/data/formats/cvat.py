"""CVAT for images 1.1: annotations.xml, and the pictures in images/. Read only.

<annotations><image name="a.jpg" subset="train" width="160" height="120"><box label="cup" xtl="…" ytl="…" xbr="…"
ybr="…" occluded="0" rotation="0"/></image></annotations>, in pixels. The classes are those of <meta>, in its order.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

from multibox.data.class_lists import LabelCoder, class_map_of, find_class_list
from multibox.data.columns import flag_bits
from multibox.data.contents import xml_of
from multibox.data.entries import Entry, Evidence, Object
from multibox.data.findings import DataError
from multibox.data.names import split_in_file_name, split_in_path
from multibox.data.reading import Reading
from multibox.data.records import Dataset
from multibox.data.shapes import Box, around_circle, around_points, around_sides, numbers
from multibox.data.tree import Tree, folder_of

__all__ = ["evidence", "read"]

SUFFIX = ".xml"
MOST_LOOKED_AT = 60
_NO_BOX = frozenset({"points", "polyline", "tag", "skeleton"})
_NO_SPLIT = frozenset({"", "default"})


def holds(root: Element) -> bool:
    """Whether an XML file is CVAT's for images."""
    return root.tag == "annotations" and root.find("image") is not None


def evidence(tree: Tree) -> Evidence | None:
    """The XML files of CVAT in a tree."""
    files = tree.annotations(SUFFIX)
    step = max(1, len(files) // MOST_LOOKED_AT)
    found = next((file for file in files[::step] if _is_cvat(tree.root / file)), None)
    if found is None:
        return None
    return Evidence("a .xml file" if tree.is_file else f"found {found}")


def _is_cvat(path: Path) -> bool:
    try:
        return holds(xml_of(path.read_bytes()))
    except ValueError:
        return False


def read(tree: Tree, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read CVAT's XML files; the split of a picture is its subset, or else that of the file or the folder.

    Raises:
        DataError: nothing can be read, or files list different classes.
    """
    reading = Reading(tree.place, tree, pictures=None if images is None else Tree(images))
    files = tree.annotations(SUFFIX)
    reading.meet(files=len(files))
    roots: dict[str, Element] = {}
    for file in files:
        root = reading.read(file, xml_of)
        if root is not None and holds(root):
            roots[file] = root
        elif root is not None:
            reading.unread(file, f"it holds <{root.tag}>, and no <image> of CVAT's")
    names = {file: _names(root) for file, root in roots.items()}
    first = next(iter(names), "")
    for file, found in names.items():
        if found != names[first]:
            raise DataError(tree.root / file, f"lists other classes than {first}", "make them agree")
    given = class_map_of(tree.root / first, names[first]) if names.get(first) else find_class_list(tree)
    reading.coder = LabelCoder(given)
    for file, root in roots.items():
        for number, image in enumerate(root.iter("image")):
            entry = _entry(image, f"picture {number}")
            folder = folder_of(file)
            inner = f"{folder}/images" if folder else "images"
            path = reading.find(entry.picture, (inner, f"{inner}/{image.get('subset') or 'default'}", folder, ""))
            entry.split = entry.split or split_in_file_name(file) or split_in_path(path)
            reading.add(entry, path, file, f"picture {number}")
    reading.note_unlisted()
    return reading.finish("add a classes.txt with the class names")


def _names(root: Element) -> list[str]:
    """The classes of <meta>."""
    found = [(label.findtext("name") or "").strip() for label in root.iter("label")]
    return [name for name in found if name]


def _entry(image: Element, where: str) -> Entry:
    values = {key.casefold(): value for key, value in image.attrib.items()}
    shapes = list(image)
    subset = values.get("subset", "")
    entry = Entry(
        values.get("name", ""),
        len(shapes),
        size_hw=(values.get("height"), values.get("width")),
        split=None if subset.casefold() in _NO_SPLIT else subset,
    )
    for number, shape in enumerate(shapes):
        place, kind = f"{where}, shape {number}", str(shape.tag)
        if kind in _NO_BOX:
            entry.others.append(("no_box", place, f"a {kind} is no box"))
            continue
        given = {key.casefold(): value for key, value in shape.attrib.items()}
        turned = (numbers((given.get("rotation", 0),)) or [0])[0]
        if kind != "box" or turned:
            entry.notes.append(("polygon_to_box", place, f"a {kind} was replaced by the box around it"))
        named = {child.get("name", "").casefold(): child.text for child in shape}
        bits = flag_bits(None, named.get("difficult"), named.get("truncated"), given.get("occluded"))
        entry.objects.append(Object(place, given.get("label"), _box(kind, given), given, flags=bits))
    return entry


def _box(kind: str, given: dict[str, str]) -> Box | None:
    turn = given.get("rotation")
    if kind == "ellipse":
        return around_circle(given.get("cx"), given.get("cy"), given.get("rx"), given.get("ry"), turn)
    if kind == "mask":
        return around_sides(given.get(key) for key in ("left", "top", "width", "height"))
    if "points" in given:
        return around_points(given["points"].replace(";", ",").split(","))
    if kind != "box":  # a cuboid, whose corners are xtl1, ytl1, xtr1 …
        ends = sorted(key for key in given if key[:2] in {"xt", "xb", "yt", "yb"})
        xs, ys = ([given[key] for key in ends if key[0] == axis] for axis in "xy")
        return around_points(list(zip(xs, ys, strict=False))) if len(xs) == len(ys) else None
    corners = numbers([given.get(key) for key in ("xtl", "ytl", "xbr", "ybr")])
    if corners is None:
        return None
    x1, y1, x2, y2 = corners
    if not turn:
        return x1, y1, x2, y2
    return around_sides(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), pivot=(0.5, 0.5), degrees=turn)
