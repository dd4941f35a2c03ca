"""No reader loses a box without a word, whatever has become of the files.

Every example takes a layout of `annotation_layouts`, or a format that multibox writes, changes one file of it, and
reads it. The boxes that are still in the files are counted with regular expressions. The daily run tries every change
once in every layout; a longer one makes another change before it in every second example. 2,000 examples, with the
counts for each layout:

    MULTIBOX_MUTATIONS=2000 pytest -s -q tests/data/test_mutations.py
"""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_layouts import WRITERS, Shot, classes

from multibox.data import WRITABLE, Dataset, ImageRecord, read_dataset, write_dataset
from multibox.errors import MultiboxError
from multibox.spec.classes import ClassMap

EXAMPLES = int(os.environ.get("MULTIBOX_MUTATIONS", "0"))
SEED = int(os.environ.get("MULTIBOX_SEED", "0"))
Files = dict[str, bytes]
"""The content of each annotation file, by path."""

ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")
SHAPES = "shape_type|shape_attributes|coordinates|original_width|classTitle|label_id|image_id"
LISTS = re.compile(
    r"classes|names|\.labels|train( \(1\))?\.txt|ImageSets|labelmap|README|notes|meta\.json|data\.yaml|description",
    re.I,
)
"""Files that tell classes or pictures and hold no boxes."""
HEADS = re.compile(r"\W*(filename|imageid|path,)", re.I)
"""The first lines of tables."""
XML_PARTS = r"<(?:folder|filename|path)>.*?</\w+>|<(size|object|image)\b.*?</\1>"
"""What may stand in any order in an XML file."""
FAULT = "fault of multibox"
OWN = tuple(f"multibox_{name}" for name in WRITABLE)


# ------------------------------------------------------------------------------------------------ the oracle


def as_text(content: bytes) -> str:
    encoding = "utf-8"
    content = b"" if content in {b"\xff\xfe", b"\xfe\xff"} else content
    if content.count(b"\0") > len(content) // 3:
        encoding = "utf-32" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} and content[2:4] == b"\0\0" else "utf-16"
        encoding = encoding if content[:1] in {b"\xff", b"\xfe"} else "utf-16-le" if content[1] == 0 else "utf-16-be"
    return content.decode(encoding, "replace").removeprefix("\ufeff")


def boxes_in(name: str, content: bytes) -> int:
    """The boxes that are written in a file."""
    if LISTS.search(name):
        return 0
    text, lines = as_text(content), [line for line in as_text(content).splitlines() if line.strip()]
    if ".xml" in name.lower():
        return len(re.findall(r"<(?:\w+:)?(?:bndbox|box)\b", text, re.I))
    if ".jsonl" in name.lower():
        return sum(found.count("[") for found in re.findall(r'"bbox"\s*:\s*\[(.*?\])\s*\]', text, re.I))
    if ".json" in name.lower():
        return len(re.findall(rf'"(?:{SHAPES})"\s*:', text, re.I))
    if ".txt" in name.lower():
        return len(lines)
    if ".csv" in name.lower():
        return sum(HEADS.match(line) is None and ",,,," not in line for line in lines)
    return 0


def lost_without_a_word(dataset: Dataset, shots: list[Shot], files: Files, *, cut: bool, listed: bool) -> str:
    """What is wrong with what was read; "" where everything that is written is read or named as lost.

    Args:
        cut: a file was cut off, and the last number in it perhaps.
        listed: the file that was changed tells classes or pictures and no boxes.
    """
    found = dataset.findings
    if "split_without_annotations" in found.counts:
        return ""  # its pictures are named, not the files
    if listed:  # what a list leaves out is left out on purpose
        left_out = [dataset.root / finding.path for finding in found.of_kind("unlisted_picture")]
        shots = [s for s in shots if not any(s.name == p.name or (p / s.name).exists() for p in left_out)]
    every = sum(len(shot.boxes) for shot in shots)
    lost_files = {finding.path for finding in found if finding.severity == "error"} if found.lost_files else set()
    lost = {content for name, content in files.items() if name in lost_files}  # and the copies of lost files
    written = sum(boxes_in(name, content) for name, content in files.items() if content not in lost)
    accounted = dataset.num_boxes + found.lost_boxes
    if accounted < min(written, every):
        return f"{accounted} of {written} boxes are accounted for"
    read = [box for record in dataset for box in record.boxes_xyxy.tolist()]
    wanted = [box for shot in shots for _, box in shot.boxes]
    gone = sum(not any(max(map(abs, map(float.__sub__, box, other))) < 0.1 for other in read) for box in wanted)
    if gone > found.lost_boxes and not cut and not found.lost_files:
        return f"{gone} boxes are gone, {found.lost_boxes} are named"
    return ""


# ------------------------------------------------------------------------------------------------ the mutations


def cut_off(files: Files, name: str, rng: random.Random) -> None:
    files[name] = files[name][: rng.randrange(max(1, len(files[name])))]


def shuffled(value: Any, rng: random.Random) -> Any:
    """A JSON value with the keys of objects and the objects of lists in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [shuffled(item, rng) for item in rng.sample(value, len(value))]
    return value


def reordered(files: Files, name: str, rng: random.Random) -> None:
    text = files[name].decode()
    if name.endswith(".json"):
        files[name] = json.dumps(shuffled(json.loads(text), rng)).encode()
    elif name.endswith(".xml"):
        parts = [match[0] for match in re.finditer(XML_PARTS, text, re.S)]
        root = re.match(r"<\w+>", text)
        if not parts or root is None:
            raise ValueError("in capitals")
        files[name] = f"{root[0]}{''.join(rng.sample(parts, len(parts)))}</{root[0][1:]}".encode()
    else:
        lines = text.splitlines(keepends=True)
        head = 1 if name.endswith(".csv") else 0
        files[name] = "".join([*lines[:head], *rng.sample(lines[head:], len(lines[head:]))]).encode()


def renamed(files: Files, name: str, rng: random.Random) -> None:
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.rpartition(".")
    names = [f"{stem}-1.{suffix}", f"other.{suffix}", f"{file}.{suffix}", f"x/{file}", f"../{file}", f"{file}~"]
    new = rng.choice(names)
    place = os.path.normpath(f"{folder}/{new}" if folder else new.removeprefix("../"))
    files[place] = files.pop(name)


def wrapped(files: Files, name: str, rng: random.Random) -> None:
    text = files[name].decode()
    if name.endswith(".json"):
        files[name] = rng.choice(['{"data": %s}', "[%s]", '{"a": {"b": %s}}']).replace("%s", text).encode()
    elif name.endswith(".xml"):
        files[name] = f"<all xmlns='http://x.org/y'><one>{text}</one></all>".encode()
    elif rng.random() < 0.5:
        files.update({f"inner/{other}": files.pop(other) for other in list(files)})
    else:
        files[name] = "".join(f"[{line}]\n" for line in text.splitlines()).encode()


def doubled(files: Files, name: str, rng: random.Random) -> None:
    if rng.random() < 0.5:
        files[name] *= 2
    else:
        stem, _, suffix = name.rpartition(".")
        files[f"{stem} (1).{suffix}"] = files[name]


def other_case(files: Files, name: str, rng: random.Random) -> None:
    change = rng.choice([str.upper, str.lower, str.title, str.swapcase])
    part = rng.choice(["content", "name", "folders", "all"])
    folder, _, file = name.rpartition("/")
    if part == "content":
        files[name] = change(files[name].decode()).encode()
    elif part == "name":
        files[f"{folder}/{change(file)}".removeprefix("/")] = files.pop(name)
    elif part == "folders":
        files[f"{change(folder)}/{file}".removeprefix("/")] = files.pop(name)
    else:
        files.update({change(other): files.pop(other) for other in list(files)})


def other_encoding(files: Files, name: str, rng: random.Random) -> None:
    files[name] = files[name].decode().encode(rng.choice(ENCODINGS), "replace")


Mutation = Callable[[Files, str, random.Random], None]
MUTATIONS: tuple[Mutation, ...] = (cut_off, reordered, renamed, wrapped, doubled, other_case, other_encoding)


# ------------------------------------------------------------------------------------------------ the test


def write_own(name: str, root: Path, shots: list[Shot]) -> None:
    """The shots in a format that multibox writes."""
    names = classes(shots)
    records = [
        ImageRecord(
            shot.name,
            number,
            shot.size_wh[::-1],
            np.array([box for _, box in shot.boxes], np.float32).reshape(-1, 4),
            np.array([names.index(found) for found, _ in shot.boxes], np.int64),
            split=shot.split,
        )
        for number, shot in enumerate(shots)
    ]
    dataset = Dataset.from_records(records, ClassMap(tuple(names)), root=shots[0].file.parent)
    target = root / f"set.{name}" if name in {"csv", "parquet"} else root
    write_dataset(dataset, target, format=name, copy="link", exist_ok=True)


def files_of(layout: str, shots: list[Shot]) -> tuple[Files, dict[str, Path], str]:
    """The annotation files and the pictures of a layout, and which file is given to the reader, if one is."""
    with tempfile.TemporaryDirectory() as folder:
        root, give = Path(folder), ""
        if layout in OWN:
            write_own(layout.removeprefix("multibox_"), root, shots)
        else:
            writer, _, give = WRITERS[layout]
            writer(root, shots)
        every = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        pictures = {name: path.resolve() for name, path in every.items() if path.is_symlink()}
        return {name: path.read_bytes() for name, path in every.items() if name not in pictures}, pictures, give


def outcome(layout: str, mutations: Sequence[Mutation], shots: list[Shot], rng: random.Random) -> tuple[str, str]:
    """(read, lost, refused or wrong; what is wrong) of one example."""
    files, pictures, give = files_of(layout, shots)
    lists = {content for name, content in files.items() if LISTS.search(name) and content}  # by whatever name
    names = []
    for mutate in mutations:
        names.append(rng.choice(sorted(files)))
        try:
            mutate(files, names[-1], rng)
        except ValueError:
            return "unchanged", ""  # not text, or damaged before
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path, content in [*files.items(), *pictures.items()]:
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                target.symlink_to(content)
        try:
            dataset = read_dataset(root / (give if give in files else ""))
        except MultiboxError as error:
            return ("wrong", f"{names}: {error}") if FAULT in str(error) else ("refused", str(error))
        listed = any(LISTS.search(name) for name in names)
        files = {name: content for name, content in files.items() if content not in lists}
        wrong = lost_without_a_word(dataset, shots, files, cut=cut_off in mutations, listed=listed)
    if wrong:
        return "wrong", f"{names}: {wrong}; {dict(dataset.findings.counts)}"
    return ("lost" if dataset.findings.has_loss else "read"), ""


LAYOUTS = (*sorted(WRITERS), *OWN)
ROUNDS = 1 + -(-EXAMPLES // (len(LAYOUTS) * len(MUTATIONS)))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_mutation_loses_a_box_without_a_word(layout: str, shots: list[Shot]) -> None:
    if layout == "multibox_parquet":
        pytest.importorskip("pyarrow")
    counts: Counter[str] = Counter()
    wrong = []
    for mutate in MUTATIONS:
        for number in range(SEED, SEED + ROUNDS):
            rng = random.Random(f"{layout} {mutate.__name__} {number}")
            before = [rng.choice([other for other in MUTATIONS if other is not cut_off])] if number % 2 else []
            kind, message = outcome(layout, [*before, mutate], shots, rng)
            counts[kind] += 1
            wrong += [f"{mutate.__name__} {number}: {message}"] if kind == "wrong" else []
    shown = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    print(f"{layout}: {sum(counts.values())} files, {shown}")  # noqa: T201 (for -s)
    assert not wrong, "\n".join(wrong)
