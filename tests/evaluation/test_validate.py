"""Validation: a detector on a generated set, class mapping, unreadable pictures, run folders, val and compare."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from multibox import ClassMap, Detector
from multibox.cli.val import command as val
from multibox.data import Dataset, ImageRecord, read_dataset, write_dataset
from multibox.errors import ClassMapError, ContractError, MultiboxError
from multibox.evaluation import load_evaluation, save_evaluation, validate
from multibox.run_folders import RUN_MARKER

EXAMPLES = Path(__file__).parents[2] / "examples"
# What the shipped model finds on the examples, rounded to whole pixels, as truth in VOC's spelling of the classes.
TRUTH = {
    "chelsea": [("cat", (0, 2, 403, 297))],
    "coffee": [("cup", (174, 22, 412, 249)), ("diningtable", (2, 2, 598, 397))],
    "astronaut": [("person", (25, 9, 368, 490)), ("spaceship", (340, 0, 500, 280))],
}
CLASSES = ClassMap(("cup", "spaceship", "diningtable", "cat", "person"), (3, 1, 9, 4, 20))


def dataset(folder: Path, names: tuple[str, ...] = tuple(TRUTH)) -> Dataset:
    folder.mkdir(exist_ok=True)
    records = []
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        shutil.copy(EXAMPLES / path.name, path)
        with Image.open(path) as picture:
            size_hw = (picture.height, picture.width)
        objects = TRUTH[name]
        records.append(
            ImageRecord(
                path=str(path),
                image_id=number + 10,
                size_hw=size_hw,
                boxes_xyxy=np.array([box for _, box in objects], np.float32).reshape(-1, 4),
                labels=np.array([CLASSES.index(c) for c, _ in objects], np.int64),
            )
        )
    return Dataset.from_records(records, CLASSES, root=str(folder))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


def test_classes_meet_by_name_and_the_rest_is_said(detector: Detector, tmp_path: Path) -> None:
    result = validate(detector, dataset(tmp_path), name="test")
    assert result.data.class_map == ClassMap(("cup", "diningtable", "cat", "person"), (3, 9, 4, 20))
    assert [len(truth) for truth in result.data.truths] == [1, 2, 1]
    assert [truth.image_id for truth in result.data.truths] == [10, 11, 12]
    best = [predictions.names[0] for predictions in result.data.predictions]
    assert best == ["cat", "cup", "person"]
    notes = "\n".join(result.notes)
    assert "dining table → diningtable" in notes
    assert "left out of every number, 1 class of the data set with 1 object: spaceship" in notes
    assert "not in the data set and not predicted, 76 classes of the model" in notes
    assert result.problems == ()


def test_no_other_class_takes_a_place_among_the_detections(detector: Detector, tmp_path: Path) -> None:
    result = validate(detector, dataset(tmp_path), max_det=2)
    assert [len(predictions) for predictions in result.data.predictions] == [2, 2, 2]
    only = validate(detector, dataset(tmp_path), classes=["cat"])
    assert only.data.class_map.names == ("cat",)
    assert [len(truth) for truth in only.data.truths] == [1, 0, 0]


def test_the_model_is_perfect_on_its_own_boxes(detector: Detector, tmp_path: Path) -> None:
    from multibox.evaluation import evaluate_coco

    result = evaluate_coco(validate(detector, dataset(tmp_path)).data, engine="numpy")
    assert result.ap50 == pytest.approx(1)
    assert result.ap75 == pytest.approx(1)


def test_an_unreadable_picture_is_reported_and_in_no_number(detector: Detector, tmp_path: Path) -> None:
    data = dataset(tmp_path)
    (tmp_path / "coffee.png").write_bytes(b"no picture")
    result = validate(detector, data)
    assert len(result.data) == 2
    assert [error.source for error in result.problems] == [str(tmp_path / "coffee.png")]
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ContractError, match="none of the 3 pictures"):
        validate(detector, data)


def test_swapped_corners_and_other_sizes_are_said(detector: Detector, tmp_path: Path) -> None:
    data = dataset(tmp_path)
    records = [data[i] for i in range(len(data))]
    swapped = ImageRecord(
        path=records[0].path,
        image_id=10,
        size_hw=(451, 300),
        boxes_xyxy=np.array([[400, 2, 0, 297], [0, 2, 403, 297]], np.float32),
        labels=np.array([3, 3]),
    )
    result = validate(detector, Dataset.from_records([swapped, *records[1:]], CLASSES, root=str(tmp_path)))
    notes = "\n".join(result.notes)
    assert "left out: 1 box with swapped corners" in notes
    assert "not of the declared size: 1 picture" in notes
    assert [len(truth) for truth in result.data.truths] == [1, 2, 1]


def test_nothing_in_common_is_an_error(detector: Detector, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "coffee.png", tmp_path / "coffee.png")
    record = ImageRecord(
        path="coffee.png",
        image_id=1,
        size_hw=(400, 600),
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
    )
    with pytest.raises(ClassMapError, match="no class in common"):
        validate(detector, Dataset.from_records([record], ClassMap(("RBC", "WBC")), root=str(tmp_path)))


def test_a_run_folder_gives_back_what_was_measured(detector: Detector, tmp_path: Path) -> None:
    data = validate(detector, dataset(tmp_path / "data"), name="test").data
    save_evaluation(tmp_path, data)
    again = load_evaluation(tmp_path)
    assert again.name == "test"
    assert again.class_map == data.class_map
    for ours, theirs in zip(again.truths, data.truths, strict=True):
        assert ours.detections == theirs.detections
        assert ours.image_id == theirs.image_id
        np.testing.assert_array_equal(ours.area, theirs.area)
    for ours, theirs in zip(again.predictions, data.predictions, strict=True):
        np.testing.assert_allclose(ours.boxes_xyxy, theirs.boxes_xyxy, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
    rows = json.loads((tmp_path / "coco-results.json").read_text())
    assert {row["category_id"] for row in rows} <= {3, 9, 4, 20}
    with pytest.raises(MultiboxError, match=r"no truth\.json; give a run folder"):
        load_evaluation(tmp_path / "data")
    (tmp_path / "coco-results.json").write_text("[{}]")
    with pytest.raises(MultiboxError, match="results are damaged"):
        load_evaluation(tmp_path)


def multibox(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multibox", *words], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.mark.parametrize("size", [0, 3_000])
def test_val_on_a_full_disk_leaves_no_part_of_a_file(
    size: int, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    write_dataset(dataset(tmp_path / "pictures"), tmp_path / "data.json", format="coco")
    words = ["ssdlite300-coco", str(tmp_path / "data.json"), "resamples=0", f"project={tmp_path / 'runs'}"]
    with full_disk(size):
        result = CliRunner().invoke(val, words, standalone_mode=False)
    assert isinstance(result.exception, OSError), result.output
    left = {path.name: path.stat().st_size for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    left.pop(RUN_MARKER, None)
    assert left.keys() == ({"truth.json"} if size else set())
    assert 0 not in left.values()


@pytest.mark.slow
def test_val_and_compare_on_the_command_line(tmp_path: Path) -> None:
    write_dataset(dataset(tmp_path / "pictures"), tmp_path / "data.json", format="coco")
    assert len(read_dataset(tmp_path / "data.json")) == 3
    done = multibox("val", "ssdlite300-coco", "data.json", "--json", "resamples=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert {"protocol", "engine", "images", "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"} <= set(row)
    assert row["images"] == 3
    assert row["AP50"] == pytest.approx(1)
    assert row["AP_small"] is None
    assert set(row["per_class"]) == {"cup", "diningtable", "cat", "person"}
    folder = tmp_path / "runs" / "val"
    assert {"metrics.json", "coco-results.json", "truth.json", "report.html"} <= {p.name for p in folder.iterdir()}
    page = (folder / "report.html").read_text()
    assert "1.0000" in page
    assert 'src="http' not in page
    worse = multibox("val", "ssdlite300-coco", "data.json", "conf=0.9", "resamples=0", cwd=tmp_path)
    assert worse.returncode == 0, worse.stderr
    assert "COCO bbox" in worse.stdout
    assert "engine: " in worse.stdout
    done = multibox("compare", "runs/val", "runs/val-2", "--json", "resamples=20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "conf was 0.01 in A and 0.9 in B" in done.stderr
    assert json.loads(done.stdout)["differing_settings"] == {"conf": [0.01, 0.9]}
    newest = multibox("compare", "--json", "resamples=20", cwd=tmp_path)
    assert json.loads(newest.stdout) == json.loads(done.stdout)
    one = multibox("compare", "runs/val-2", "--json", "resamples=20", cwd=tmp_path)
    assert json.loads(one.stdout)["differing_settings"] == {"conf": [0.9, 0.01]}
    assert "has too few runs" in multibox("compare", "--project=elsewhere", cwd=tmp_path).stderr
    difference = next(d for d in json.loads(done.stdout)["differences"] if d["metric"] == "ap50")
    assert difference["a"] == pytest.approx(1)
    assert difference["b"] < 1
    (tmp_path / "pictures" / "coffee.png").write_bytes(b"no picture")
    done = multibox("val", "ssdlite300-coco", "data.json", "quiet=true", "resamples=0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "coffee.png" in done.stderr
    done = multibox("compare", "runs/val", "runs/val-3", cwd=tmp_path)
    assert done.returncode == 1
    assert "different pictures or objects" in done.stderr


@pytest.mark.slow
def test_val_says_what_the_data_lost_and_refuses_early(tmp_path: Path) -> None:
    write_dataset(dataset(tmp_path / "pictures"), tmp_path / "data.json", format="coco")
    content = json.loads((tmp_path / "data.json").read_text())
    content["annotations"][0]["bbox"] = [1, 2, "wide", 4]
    (tmp_path / "data.json").write_text(json.dumps(content))
    done = multibox("val", "ssdlite300-coco", "data.json", "--json", "resamples=0", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 box could not be read" in done.stderr
    assert any("1 box of the data set could not be read" in note for note in json.loads(done.stdout)["notes"])
    done = multibox("val", "ssdlite300-coco", "data.json", "metrics_engine=pycocotool", "name=early", cwd=tmp_path)
    assert done.returncode == 1
    assert "did you mean 'pycocotools'" in done.stderr
    assert not (tmp_path / "runs" / "early").exists()


@pytest.mark.slow
def test_the_printed_best_confidence_keeps_the_detection_it_is_the_score_of(tmp_path: Path) -> None:
    write_dataset(dataset(tmp_path / "pictures", ("chelsea",)), tmp_path / "data.json", format="coco")
    assert multibox("val", "ssdlite300-coco", "data.json", "resamples=0", cwd=tmp_path).returncode == 0
    best = json.loads((tmp_path / "runs" / "val" / "metrics.json").read_text())["best_f1"]
    assert best["f1"] == 1
    done = multibox("predict", "pictures/chelsea.png", f"conf={best['confidence']!r}", "save=false", cwd=tmp_path)
    assert "1 cat" in done.stdout


def test_ids_that_repeat_in_every_split(detector: Detector, tmp_path: Path) -> None:
    data = dataset(tmp_path)
    records = [data[i] for i in range(len(data))]
    again = [replace(record, image_id=0, split=split) for record, split in zip(records, "abc", strict=True)]
    result = validate(detector, Dataset.from_records(again, CLASSES, root=str(tmp_path)))
    assert [truth.image_id for truth in result.data.truths] == ["a/0", "b/0", "c/0"]
    assert any("they stand with their split before them" in note for note in result.notes)
    same = [replace(record, image_id=0, split="a") for record in records]
    result = validate(detector, Dataset.from_records(same, CLASSES, root=str(tmp_path)))
    assert [truth.image_id for truth in result.data.truths] == [0, 1, 2]
    assert any("pictures are numbered from 0" in note for note in result.notes)


def test_aliases_settle_what_names_do_not(detector: Detector, tmp_path: Path) -> None:
    data = dataset(tmp_path)
    both = ClassMap(("TV", "television", "cat"))
    records = [replace(data[0], labels=np.array([2]))]
    pair = Dataset.from_records(records, both, root=str(tmp_path))
    with pytest.raises(ClassMapError, match="'TV', 'television'"):
        validate(detector, pair)
    assert validate(detector, pair, classes=["cat"]).data.class_map.names == ("cat",)
    assert validate(detector, pair, aliases={"tv": "television"}).data.class_map.names == ("television", "cat")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ap", "ap50"), [("coco_val128", 0.3805, 0.5492), ("voc_sample", 0.4748, 0.7178)])
def test_the_shipped_model_is_healthy_on_real_data(
    detector: Detector, data_folder: Path, name: str, ap: float, ap50: float
) -> None:
    """The figures of an independent implementation on the same pictures; a shift of a pixel or a class would show."""
    from multibox.evaluation import evaluate_coco

    result = evaluate_coco(validate(detector, read_dataset(data_folder / name)).data, engine="numpy")
    assert result.ap == pytest.approx(ap, abs=0.001)
    assert result.ap50 == pytest.approx(ap50, abs=0.001)
