"""What is written stays where it belongs, and appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from multibox.data import WRITABLE, Dataset, read_dataset, write_dataset

FullDisk = Callable[[int], AbstractContextManager[None]]
SUFFIX = {"csv": ".csv", "parquet": ".parquet"}


def coco(folder: Path, *names: str) -> Path:
    """A COCO file with a box on each of these pictures."""
    data = {
        "categories": [{"id": 1, "name": "cup"}],
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4]} for i in range(len(names))],
    }
    folder.mkdir(exist_ok=True)
    file = folder / "set.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize("name", sorted({*WRITABLE} - {"yolo"}))
def test_an_address_on_the_web_stays_one(name: str, tmp_path: Path) -> None:
    address = "https://example.org/pics/one.jpg?size=2"
    dataset = read_dataset(coco(tmp_path, address))
    assert dataset.paths[0] == address
    assert dataset.findings.counts["picture_missing"] == 1
    target = tmp_path / f"out{SUFFIX.get(name, '')}"
    write_dataset(dataset, target, format=name, copy="false")
    back = read_dataset(target, format=name)
    assert (back.num_boxes, back.paths[0]) == (1, address)


@pytest.mark.parametrize("written", ["../secret.png", "a/../../secret.png"])
@pytest.mark.parametrize("copy", ["true", "link"])
@pytest.mark.parametrize("name", sorted(WRITABLE))
def test_a_picture_outside_the_data_folder_is_named_and_never_copied(
    name: str, copy: str, written: str, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.png")
    dataset = read_dataset(coco(tmp_path / "set", written))
    assert dataset.findings.counts["picture_outside"] == 1
    target = tmp_path / f"out/set{SUFFIX.get(name, '')}"
    report = write_dataset(dataset, target, format=name, copy=copy)  # type: ignore[arg-type]
    assert [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".png"] == []
    assert any("outside the data folder" in note for note in report.notes)


@pytest.mark.parametrize("copy", ["true", "link"])
def test_of_an_absolute_path_only_a_picture_is_copied(copy: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "elsewhere.png")
    (tmp_path / "passwords.png").write_text("root:x:0:0")
    names = [str(tmp_path / name) for name in ("elsewhere.png", "passwords.png")]
    dataset = read_dataset(coco(tmp_path / "set", *names))
    report = write_dataset(dataset, tmp_path / "out", format="voc", copy=copy)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["elsewhere.png"]
    assert any(note.startswith("1 file outside the data folder, no picture") for note in report.notes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", sorted(WRITABLE))
def test_a_full_disk_leaves_the_earlier_files_and_no_part_of_new_ones(
    name: str, small: Dataset, tmp_path: Path, full_disk: FullDisk
) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    file = f"set{SUFFIX.get(name, '')}"
    write_dataset(small, tmp_path / "whole" / file, format=name, copy="link")
    write_dataset(small.select([0]), tmp_path / "out" / file, format=name, copy="link")
    whole, earlier = contents(tmp_path / "whole"), contents(tmp_path / "out")
    for size in (0, 40):
        with full_disk(size), pytest.raises(OSError, match=r"large|space"):
            write_dataset(small, tmp_path / "out" / file, format=name, copy="link", exist_ok=True)
        after = contents(tmp_path / "out")
        assert earlier.keys() <= after.keys() <= whole.keys()
        assert all(content in {whole[path], earlier.get(path)} for path, content in after.items())


def test_a_full_disk_leaves_no_part_of_a_copied_picture(small: Dataset, tmp_path: Path, full_disk: FullDisk) -> None:
    with full_disk(60), pytest.raises(OSError, match=r"large|space"):
        write_dataset(small, tmp_path / "out", format="voc", copy="true")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
