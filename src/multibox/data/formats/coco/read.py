"""COCO JSON: a file for each split, boxes [x, y, width, height] in pixels, ids that start anywhere and have gaps."""

from __future__ import annotations

import json
import re
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.data.class_lists import class_map_of, usable_area, whole_number
from multibox.data.columns import LARGEST_PX, Builder, flag_bits
from multibox.data.findings import DataError, Findings
from multibox.data.formats.coco.write import ANNOTATION_FOLDER, write
from multibox.data.records import Dataset
from multibox.errors import ContractError
from multibox.spec.classes import ClassMap

__all__ = ["evidence", "read", "write"]

_SNIFF_BYTES = 1 << 16
_YEAR = re.compile(r"[-_]?(19|20)\d\d$")
_NOT_KEPT = ("segmentation", "keypoints", "caption")


def evidence(path: Path) -> str | None:
    """What makes a file or folder look like COCO JSON, or None."""
    if path.is_file():
        return "a .json file" if path.suffix.lower() == ".json" else None
    files = _files(path)
    return None if not files else f"found {files[0].relative_to(path).as_posix()}"


def read(path: Path, *, split: str | None = None, images: Path | None = None) -> Dataset:
    """Read a COCO JSON file, or a folder of them.

    The split of a picture is its own entry "split" if it has one, else the file's: what follows "instances_", without
    a year. Pictures are looked for in `images`, or else in the customary places around the file. Labels are the
    ranks of the category ids, which stay in `ClassMap.ids`.

    Raises:
        DataError: no COCO file, or files that disagree about their categories.
    """
    files = [path] if path.is_file() else _files(path)
    if not files:
        raise DataError(path, "holds no COCO JSON file", "give the file, or the folder that contains annotations/")
    root = path if path.is_dir() else path.parent.parent if path.parent.name == ANNOTATION_FOLDER else path.parent
    if images is not None:
        root = images
    builder, findings = Builder(), Findings()
    owners, class_map = [], None
    for file in files:
        reader = _File(file, builder, findings)
        if class_map is not None:
            class_map.require_same(reader.class_map, mine=str(files[0]), theirs=str(file))
        class_map = reader.class_map
        owners.append(reader.add_pictures(root, images))
    assert class_map is not None
    return Dataset(builder.finish(pictures=np.concatenate(owners)), class_map, root, findings=findings)


def _files(folder: Path) -> list[Path]:
    inner = folder / ANNOTATION_FOLDER
    files = sorted(inner.glob("*.json")) if inner.is_dir() else []
    files = [file for file in files if file.name.startswith("instances")] or files
    files = files or sorted(folder.glob("*.json")) or sorted(folder.glob("*/_annotations.coco.json"))
    return [file for file in files if _looks_right(file)]


def _looks_right(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(_SNIFF_BYTES)
    return start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and any(
        k in start for k in (b'"images"', b'"annotations"', b'"categories"')
    )


class _File:
    """One JSON file. Annotations go into arrays while it is parsed, so that their dictionaries never exist together."""

    def __init__(self, file: Path, builder: Builder, findings: Findings) -> None:
        self._file, self._builder, self._findings = file, builder, findings
        self._picture_ids: list[Any] = []
        self._category_ids: list[Any] = []
        self._where: list[Any] = []
        self._not_kept = 0
        self._data = self._parse()
        self.class_map = self._classes()

    def _parse(self) -> dict[str, Any]:
        try:
            data = json.loads(self._file.read_bytes().decode("utf-8-sig"), object_hook=self._take)
        except OSError as error:
            raise DataError(self._file, f"cannot be read ({error.strerror})", "check the path") from None
        except (ValueError, RecursionError) as error:
            raise DataError(self._file, f"is no JSON ({error})", "write it again or copy it again") from None
        if isinstance(data, list):
            raise DataError(
                self._file, "is a list (COCO results?), not a data set", "give the file with images and categories"
            )
        if not isinstance(data, dict) or not isinstance(data.get("images"), list):
            raise DataError(self._file, 'has no list under "images"', "give a COCO instances file")
        return data

    def _take(self, found: dict[str, Any]) -> dict[str, Any] | None:
        """Put an annotation away; leave every other object, and annotations that cannot be read, to the parser."""
        if "bbox" not in found or "image_id" not in found:
            return found
        try:
            x, y, width, height = (float(value) for value in found["bbox"])
        except (TypeError, ValueError, OverflowError):
            return found
        area = usable_area(found.get("area"), self._findings, self._file.name, f"annotation id {found.get('id')}")
        bits = flag_bits(
            found.get("iscrowd"),
            found.get("difficult") or found.get("ignore"),
            found.get("truncated"),
            found.get("occluded"),
        )
        # The label is set once the categories are known.
        if not self._builder.add_box(0, 0, (x, y, x + width, y + height), flags=bits, area=area):
            return found
        self._picture_ids.append(found["image_id"])
        self._category_ids.append(found.get("category_id"))
        self._where.append(found.get("id"))
        self._not_kept += any(found.get(key) for key in _NOT_KEPT)
        return None

    def _classes(self) -> ClassMap:
        categories = self._data.get("categories")
        if not isinstance(categories, list) or not categories:
            raise DataError(self._file, 'has no list under "categories"', "add the categories with their ids and names")
        try:
            names = {int(entry["id"]): str(entry["name"]) for entry in categories}
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(self._file, f"has a category without id or name ({error!r})", "complete it") from None
        if len(names) != len(categories):
            raise DataError(self._file, "has two categories with the same id", "give each category its own id")
        order = _own(self._data).get("class_order")
        ids = order if isinstance(order, list) and sorted(order) == sorted(names) else sorted(names)
        return class_map_of(self._file, [names[i] for i in ids], ids)

    def add_pictures(self, root: Path, images: Path | None) -> NDArray[np.int64]:
        """Add this file's pictures to the builder; return the picture of each of its boxes, −1 where there is none."""
        default_split = _own(self._data).get("split", _split_of(self._file))
        entries = self._entries()
        base = images or _picture_folder(self._file, [name for _, name, _ in entries[:20]], root)
        prefix = (
            "" if base == root else base.relative_to(root).as_posix() + "/" if base.is_relative_to(root) else f"{base}/"
        )
        index_of: dict[Any, int] = {}
        names: dict[Any, str] = {}
        for picture_id, name, entry in entries:
            if picture_id in index_of:
                if names[picture_id] != name:
                    raise DataError(
                        self._file,
                        f"image id {picture_id!r} is used twice ({names[picture_id]}, {name})",
                        "give each its own id",
                    )
                self._findings.add("duplicate_picture", name, f"image id {picture_id!r}")
                continue
            split = entry.get("split", default_split)
            stored = name if Path(name).is_absolute() else prefix + name
            try:
                index_of[picture_id] = self._builder.add_picture(
                    stored,
                    image_id=picture_id,
                    size_hw=self._size_hw(entry, name),
                    split=split if isinstance(split, str) else None,
                )
            except ContractError as error:
                raise DataError(self._file, f"image id {picture_id!r}: {error}", "correct the entry") from None
            names[picture_id] = name
        return self._resolve(index_of)

    def _entries(self) -> list[tuple[Any, str, dict[str, Any]]]:
        out = []
        for number, entry in enumerate(self._data["images"]):
            picture_id = entry.get("id") if isinstance(entry, dict) else None
            name = entry.get("file_name") if isinstance(entry, dict) else None
            if isinstance(picture_id, float) and picture_id.is_integer():
                picture_id = int(picture_id)
            if not isinstance(picture_id, (int, str)) or not isinstance(name, str) or not name:
                raise DataError(
                    self._file, f"entry {number} of images has no id or no file_name", "complete or remove it"
                )
            out.append((picture_id, name, entry))
        return out

    def _size_hw(self, entry: dict[str, Any], name: str) -> tuple[int, int] | None:
        height, width = whole_number(entry.get("height")), whole_number(entry.get("width"))
        if height is not None and width is not None and 0 < height < LARGEST_PX and 0 < width < LARGEST_PX:
            return height, width
        if entry.get("height") is not None or entry.get("width") is not None:
            self._findings.add("size_unusable", name)
        return None

    def _resolve(self, index_of: dict[Any, int]) -> NDArray[np.int64]:
        findings, shown = self._findings, self._file.name
        label_of = {class_id: index for index, class_id in enumerate(self.class_map.ids)}
        owners, labels = array("q"), array("i")
        for picture_id, category_id, annotation_id in zip(
            self._picture_ids, self._category_ids, self._where, strict=True
        ):
            owner, label = _looked_up(index_of, picture_id), _looked_up(label_of, category_id)
            if owner < 0:
                findings.add(
                    "unknown_picture",
                    shown,
                    f"annotation id {annotation_id}",
                    f"no picture has the id {picture_id!r}; the box is lost",
                    lost=1,
                )
            elif label < 0:
                message = f"no category has the id {category_id!r}; the box is lost"
                findings.add("unknown_class", shown, f"annotation id {annotation_id}", message, lost=1)
            owners.append(owner if label >= 0 else -1)
            labels.append(max(label, 0))
        self._builder.set_last_labels(labels)
        self._report_rest()
        return np.array(owners, np.int64)

    def _report_rest(self) -> None:
        for entry in self._data.get("annotations") or ():
            if entry is not None:  # what `_take` could not put away
                where = f"annotation id {entry.get('id')}" if isinstance(entry, dict) else "annotations"
                shown = repr(entry.get("bbox"))[:80] if isinstance(entry, dict) else repr(entry)[:80]
                self._findings.add(
                    "unparsable_box", self._file.name, where, f"bbox is {shown}; the box is lost", lost=1
                )
        if self._not_kept:
            message = f"{self._not_kept} segmentations or key points beside boxes are not kept"
            self._findings.add("detail_not_kept", self._file.name, "", message, count=self._not_kept)


def _looked_up(table: dict[Any, int], key: Any) -> int:
    try:
        return table.get(key, -1)
    except TypeError:  # a list or an object in place of an id
        return -1


def _own(data: dict[str, Any]) -> dict[str, Any]:
    info = data.get("info")
    own = info.get("multibox") if isinstance(info, dict) else None
    return own if isinstance(own, dict) else {}


def _split_of(file: Path) -> str | None:
    """annotations/instances_train2017.json and train/_annotations.coco.json → train; others → None."""
    if file.name == "_annotations.coco.json":
        return file.parent.name
    match = re.fullmatch(r"(?:.*_)?(train|val|valid|validation|test|minitrain|minival)", _YEAR.sub("", file.stem))
    return match[1] if match else None


def _picture_folder(file: Path, names: list[str], root: Path) -> Path:
    """The folder, of those customary, in which most of the first pictures exist; `root` where none does."""
    split, raw = _split_of(file), file.stem.split("_", 1)[-1]
    places: list[Path] = [
        root / "images" / raw,
        root / raw,
        root / "images" / str(split),
        root / str(split),
        root / "images",
        root,
        file.parent,
    ]
    hits = [(sum((place / name).is_file() for name in names), -rank) for rank, place in enumerate(places)]
    most, rank = max(hits)
    return places[-rank] if most else root
