"""data.yaml: which classes and which folders."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multibox.data.class_lists import class_map_of, read_class_file, whole_number
from multibox.data.findings import DataError, Findings
from multibox.errors import MissingDependencyError
from multibox.spec.classes import ClassMap

__all__ = ["YoloConfig", "find_config", "load_config", "yaml_text"]

SPLIT_KEYS = ("train", "val", "test")
_FOLDER_SPLITS = (*SPLIT_KEYS, "valid", "train2017", "val2017")
_EMPTY = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True)
class YoloConfig:
    """What data.yaml says.

    `splits` maps a split to its folders, list files or pictures; `label_of` maps the class numbers of label files to
    labels (they differ only where `names` has gaps).
    """

    root: Path
    source: Path
    class_map: ClassMap
    splits: dict[str, list[str]]
    label_of: dict[int, int]
    has_keypoints: bool
    findings: Findings

    def resolve(self, place: str) -> Path:
        """An existing folder or file that data.yaml names, or DataError."""
        direct = Path(os.path.normpath(self.root / place))
        if direct.exists():
            return direct
        # Some exporters write ../train/images for the folder train/images beside data.yaml.
        stripped = place
        while stripped.startswith("../"):
            stripped = stripped[3:]
        if stripped != place and (self.root / stripped).exists():
            self.findings.add("path_repaired", self.source.name, "", f"{place} does not exist, {stripped} was read")
            return self.root / stripped
        raise DataError(
            self.source, f"names {place}, but there is no {direct}", "correct path, train, val or test in it"
        )


def find_config(folder: Path) -> Path | None:
    """The data.yaml of a folder, or its only YAML file that has the keys of one."""
    if (folder / "data.yaml").is_file():
        return folder / "data.yaml"
    files = [file for file in sorted(folder.glob("*.y*ml")) if file.suffix in {".yaml", ".yml"} and _has_keys(file)]
    return files[0] if len(files) == 1 else None


def _has_keys(file: Path) -> bool:
    keys = {
        line.split(":")[0].strip()
        for line in file.read_bytes().decode("utf-8-sig", "replace").splitlines()
        if ":" in line
    }
    return "names" in keys and bool(keys & {"train", "val"})


def load_config(path: Path) -> YoloConfig:
    """Read data.yaml, given it or its folder; a folder without one needs images/, labels/ and classes.txt."""
    source = path if path.is_file() else find_config(path)
    if source is None:
        return _without_yaml(path)
    data = _load_yaml(source)
    root = Path(os.path.normpath(source.parent / str(data.get("path") or "")))
    if not root.is_dir():
        raise DataError(source, f"says path: {data['path']}, but there is no folder {root}", "correct path")
    findings = Findings()
    class_map = _classes(source, data)
    splits = {key: _places(source, key, data[key]) for key in SPLIT_KEYS if _given(data.get(key))}
    numbers = {class_id: label for label, class_id in enumerate(class_map.ids)}
    return YoloConfig(root, source, class_map, splits, numbers, _given(data.get("kpt_shape")), findings)


def _without_yaml(folder: Path) -> YoloConfig:
    class_map = read_class_file(folder / "classes.json") or read_class_file(folder / "labels" / "classes.json")
    if not (folder / "images").is_dir() or class_map is None:
        raise DataError(
            folder, "has no data.yaml, nor images/ and classes.txt", "write a data.yaml with path, train, val and names"
        )
    inner = sorted(entry.name for entry in (folder / "images").iterdir() if entry.is_dir())
    splits = {name: [f"images/{name}"] for name in inner if name in _FOLDER_SPLITS}
    if len(splits) < len(inner) or not splits:
        splits = {"train": ["images"]}
    return YoloConfig(folder, folder, class_map, splits, {i: i for i in range(len(class_map))}, False, Findings())


def _load_yaml(source: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        data = _own_yaml(source)
        if data is None:
            raise MissingDependencyError("PyYAML", f"reading {source.name}", "data") from None
        return data
    try:
        # Every scalar stays text: no code is run, and a class named "no" or "007" stays what it is.
        data = yaml.load(source.read_bytes().decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(source, f"cannot be read ({error.strerror})", "check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(source, f"is no YAML ({error})", "correct it") from None
    if not isinstance(data, dict):
        raise DataError(source, "holds no keys", "write path, train, val and names")
    return data


_OWN_HEAD = re.compile(r"path: \.\n((?:(?:train|val|test): images/[a-z]+\n)*)nc: ([0-9]+)\nnames:\n")
_OWN_NAME = re.compile(r'  ([0-9]+): "((?:[^"\\\n]|\\["\\]|\\U[0-9a-f]{8})*)"\n')
_OWN_ESCAPE = re.compile(r'\\(?:(["\\])|U([0-9a-f]{8}))')


def _own_yaml(source: Path) -> dict[str, Any] | None:
    """The keys of a file just as `yolo_write` writes it, read without PyYAML; None for every other file."""
    try:
        text = source.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return None
    head = _OWN_HEAD.match(text)
    if head is None:
        return None
    names, position = {}, head.end()
    while row := _OWN_NAME.match(text, position):
        names[row[1]] = _OWN_ESCAPE.sub(lambda found: found[1] or chr(int(found[2], 16)), row[2])
        position = row.end()
    if position != len(text):
        return None
    places = dict(line.split(": ", 1) for line in head[1].splitlines())
    return {"path": ".", **places, "nc": head[2], "names": names}


def _given(value: Any) -> bool:
    return bool(value) and not (isinstance(value, str) and value in _EMPTY)


def _places(source: Path, key: str, value: Any) -> list[str]:
    places = value if isinstance(value, list) else [value]
    if not all(isinstance(place, str) for place in places):
        raise DataError(source, f"{key} is neither a folder, a list of folders nor a .txt file", f"correct {key}")
    return places


def _classes(source: Path, data: dict[str, Any]) -> ClassMap:
    names = data.get("names")
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
