"""The files of a run, without a model."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multibox.cli.outputs import Outputs, open_outputs
from multibox.data import read_dataset
from multibox.errors import ImageError, MultiboxError, OptionError
from multibox.pictures.read import picture_size_hw
from multibox.pictures.sources import Source, expand_sources
from multibox.run_folders import RUN_MARKER, discard_empty_folder, new_run_folder
from multibox.spec.classes import ClassMap
from multibox.spec.detections import Detections

CLASSES = ClassMap(("cat", "hot dog"), (17, 90))


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    switches = dict.fromkeys(("save_txt", "save_conf", "save_csv", "save_coco", "as_json", "exist_ok"), False)
    return {"save": True, "project": str(folder / "runs"), "name": "predict", **switches, **changes}


def found(size_hw: tuple[int, int], path: str, class_map: ClassMap = CLASSES) -> Detections:
    picture = np.zeros((*size_hw, 3), np.uint8)
    return Detections(np.array([[1, 2, 11, 12]]), np.array([1]), np.array([0.5]), class_map, size_hw, path, picture)


def write(folder: Path, name: str, size_hw: tuple[int, int] = (20, 30), **changes: Any) -> Path:
    with open_outputs([Source(name, "file", name)], options(folder, **changes)) as outputs:
        outputs.write(0, found(size_hw, name))
    assert outputs.folder is not None
    return outputs.folder


@pytest.mark.parametrize(
    ("name", "length", "drawn"),
    [
        ("a.tiff", 70_000, "a.png"),
        ("a.jpg", 65_500, "a.jpg"),
        ("a.webp", 16_384, "a.png"),
        ("a.webp", 16_383, "a.webp"),
    ],
)
def test_a_side_too_long_for_the_format_is_drawn_as_png(tmp_path: Path, name: str, length: int, drawn: str) -> None:
    folder = write(tmp_path, name, (20, length))
    assert {path.name for path in folder.iterdir()} == {RUN_MARKER, drawn}
    assert picture_size_hw(folder / drawn) == (20, length)


@pytest.mark.parametrize("error", [OSError("broken data stream"), ValueError("encoding error 5")])
def test_a_picture_that_cannot_be_encoded_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    sources = [Source(name, "file", name) for name in ("a.jpg", "b.jpg")]
    with open_outputs(sources, options(tmp_path, save_txt=True)) as outputs:
        with monkeypatch.context() as patched:
            patched.setattr(Image.Image, "save", fail)
            with pytest.raises(ImageError, match=r"^a\.jpg: .*save=false") as caught:
                outputs.write(0, found((20, 30), "a.jpg"))
        assert str(error) in caught.value.reason
        outputs.write(1, found((20, 30), "b.jpg"))
    assert outputs.folder is not None
    assert {path.name for path in outputs.folder.iterdir()} == {RUN_MARKER, "b.jpg", "labels"}
    assert {path.name for path in (outputs.folder / "labels").iterdir()} == {"a.txt", "b.txt", "classes.txt"}


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(MultiboxError, match="No space left on device") as caught:
        write(tmp_path, "a.jpg")
    assert not isinstance(caught.value, ImageError)


def test_the_table_reads_back_as_a_data_set_with_the_original_ids(tmp_path: Path) -> None:
    folder = write(tmp_path, "a.jpg", save=False, save_csv=True)
    dataset = read_dataset(folder / "detections.csv")
    assert dataset.class_map == CLASSES
    assert dataset[0].labels.tolist() == [1]
    assert "no_class_list" not in dataset.findings.counts


def test_the_class_list_does_not_take_the_place_of_labels(tmp_path: Path) -> None:
    folder = write(tmp_path, "a.jpg", save=False, save_txt=True) / "labels"
    assert (folder / "classes.txt").read_text() == "cat\nhot dog\n"
    folder = write(tmp_path, "classes.jpg", save=False, save_txt=True) / "labels"
    assert (folder / "classes.txt").read_text().startswith("1 ")
    assert json.loads((folder / "classes.json").read_text()) == CLASSES.to_dict()


def test_a_run_does_not_feed_on_earlier_ones(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    run = write(tmp_path, "a.png")
    found = expand_sources([tmp_path])
    assert [Path(source.name).name for source in found.sources] == ["a.png"]
    assert (found.skipped, found.skipped_runs) == (1, 1)
    assert [source.name for source in expand_sources([run]).sources] == [str(run / "a.png")]


def test_only_new_folders_are_marked_and_empty_ones_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert new_run_folder(str(tmp_path), "mine", exist_ok=True) == tmp_path / "mine"
    assert list((tmp_path / "mine").iterdir()) == []
    assert not discard_empty_folder(tmp_path / "mine")
    made = new_run_folder(str(tmp_path), "mine", exist_ok=False)
    assert [path.name for path in made.iterdir()] == [RUN_MARKER]
    assert discard_empty_folder(made)
    assert not made.exists()


def test_impossible_projects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown home folder"):
        new_run_folder("~nobody-of-this-name/x", "predict", exist_ok=False)
    with pytest.raises(MultiboxError, match="cannot be created"), ExitStack() as stack:
        Outputs([], options(tmp_path, project="a\0b"), stack)
