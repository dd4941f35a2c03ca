"""Which classes and which pictures a YOLO data set has: data.yaml, Darknet's obj.data, or the folders alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.class_lists import class_map_of, find_class_list, read_names, whole_number
from multibox.data.contents import decoded
from multibox.data.findings import DataError
from multibox.data.names import usual_split
from multibox.data.tree import Tree, suffix_of
from multibox.spec.classes import ClassMap

__all__ = ["SPLIT_KEYS", "YoloConfig", "find_config", "load_config", "yaml_text"]

SPLIT_KEYS = ("train", "val", "test")
YAML_SUFFIXES = (".yaml", ".yml")
DARKNET_SUFFIX = ".data"
_EMPTY = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True)
class YoloConfig:
    """What a configuration says.

    Args:
        tree: the root folder, from which all paths count.
        source: the file, or the folder where there is none.
        class_map: the classes.
        splits: the folders, list files or pictures of each split; None where the folders alone say it.
        label_of: the label for each class number of the label files (they differ only where `names` has gaps).
        has_keypoints: rows have key points behind the box.
        notes: what had to be repaired.
    """

    tree: Tree
    source: Path
    class_map: ClassMap
    splits: dict[str, list[str]] | None
    label_of: dict[int, int]
    has_keypoints: bool = False
    notes: tuple[str, ...] = ()


def find_config(tree: Tree) -> str | None:
    """The configuration of a folder: its data.yaml, else its only YAML or .data file that has the keys of one."""
    if tree.is_file:
        return tree.annotations()[0] if suffix_of(tree.place.name) in {*YAML_SUFFIXES, DARKNET_SUFFIX} else None
    top = [file for file in tree.annotations(*YAML_SUFFIXES) if "/" not in file]
    usual = [file for file in top if file.lower() in {"data.yaml", "data.yml"}]
    files = usual or [file for file in top if _has_keys(tree.root / file)]
    files = files or [
        file for file in tree.annotations(DARKNET_SUFFIX) if "/" not in file and "names" in _darknet(tree.root / file)
    ]
    return files[0] if len(files) == 1 else None


def _has_keys(file: Path) -> bool:
    lines = file.read_bytes().decode("utf-8-sig", "replace").splitlines()
    keys = {line.split(":")[0].strip() for line in lines if ":" in line}
    return "names" in keys and bool({usual_split(key) for key in keys} & {"train", "val"})


def load_config(tree: Tree) -> YoloConfig:
    """Read data.yaml or obj.data, given it or its folder; a folder without one needs a class list.

    Raises:
        DataError: there is none, or it is damaged.
    """
    file = find_config(tree)
    if file is None:
        return _of_folders(tree)
    source = tree.root / file
    return _of_darknet(source) if suffix_of(file) == DARKNET_SUFFIX else _of_yaml(source)


def _of_folders(tree: Tree) -> YoloConfig:
    class_map = find_class_list(tree)
    if class_map is None:
        raise DataError(
            tree.place,
            "has label files, but no data.yaml and no classes.txt with the class names",
            "write a data.yaml with path, train, val and names, or a classes.txt with a name a line",
        )
    return YoloConfig(tree, tree.place, class_map, None, {i: i for i in range(len(class_map))})


def _darknet(source: Path) -> dict[str, str]:
    lines = source.read_bytes().decode("utf-8-sig", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _of_darknet(source: Path) -> YoloConfig:
    data, tree = _darknet(source), Tree(source.parent)
    place = tree.located(data["names"]) if data.get("names") else None
    class_map = find_class_list(tree) if place is None else read_names(tree.root / place)
    if class_map is None:
        raise DataError(source, f"says names = {data.get('names')}, but there is no such file", "correct names")
    splits = {key: [data[key]] for key in data if usual_split(key) in SPLIT_KEYS and data[key]}
    return YoloConfig(tree, source, class_map, splits or None, {i: i for i in range(len(class_map))})


def _of_yaml(source: Path) -> YoloConfig:
    data = _load_yaml(source)
    written, notes = str(data.get("path") or ""), []
    tree = Tree(source.parent)
    place = tree.root / written
    if not place.is_dir():
        notes.append(f"path: {written} is no folder here; that of {source.name} was taken")
    elif place.resolve() != source.parent.resolve():
        tree = Tree(Path(os.path.normpath(place)))
    class_map = _classes(source, data, tree)
    splits = {key: _places(source, key, data[key]) for key in data if usual_split(key) in SPLIT_KEYS}
    given = {key: places for key, places in splits.items() if places} or None
    if given is None:
        notes.append("it names no folder for train, val or test; those that are there were read")
    numbers = {class_id: label for label, class_id in enumerate(class_map.ids)}
    return YoloConfig(tree, source, class_map, given, numbers, _given(data.get("kpt_shape")), tuple(notes))


def _load_yaml(source: Path) -> dict[str, Any]:
    import yaml

    try:
        # Every scalar stays text: no code is run, and a class named "no" or "007" stays what it is.
        data = yaml.load(decoded(source.read_bytes()), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(source, f"cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(source, f"is no UTF-8 text ({error.reason})", "save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(source, f"is no YAML ({error})", "correct it") from None
    if not isinstance(data, dict):
        raise DataError(source, "holds no keys", "write path, train, val and names")
    return data


def _given(value: Any) -> bool:
    return bool(value) and not (isinstance(value, str) and value in _EMPTY)


def _places(source: Path, key: str, value: Any) -> list[str]:
    if not _given(value):
        return []
    places = value if isinstance(value, list) else [value]
    if not all(isinstance(place, str) for place in places):
        raise DataError(source, f"{key} is neither a folder, a list of folders nor a .txt file", f"correct {key}")
    return places


def _classes(source: Path, data: dict[str, Any], tree: Tree) -> ClassMap:
    names = data.get("names")
    if isinstance(names, str) and _given(names):  # a file with a name a line
        place = tree.located(names)
        found = None if place is None else read_names(tree.root / place)
        if found is None:
            raise DataError(source, f"says names: {names}, but there is no such list", "write the names as a list")
        return found
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        class_map = class_map_of(source, names)
    elif isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values()):
        numbers = [whole_number(key) for key in names]
        if None in numbers:
            raise DataError(source, "names has keys that are no numbers", "write names as 0: cat, 1: dog …")
        ordered = sorted((int(key), name) for key, name in names.items())
        class_map = class_map_of(source, [name for _, name in ordered], [number for number, _ in ordered])
    else:
        raise DataError(source, "has no class names", "add names as a list or as 0: cat, 1: dog …")
    count = whole_number(data.get("nc", len(class_map)))
    if count is not None and count <= max(class_map.ids):
        raise DataError(source, f"says nc: {count}, but names has {len(class_map)} classes", "make them agree")
    return class_map


def yaml_text(text: str) -> str:
    """A double-quoted YAML scalar."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        else:
            out.append(f"\\U{ord(char):08x}")
    return f'"{"".join(out)}"'
