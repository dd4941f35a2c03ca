"""Records, data sets and their arrays."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.data import DataError, Dataset, Findings, ImageRecord, read_dataset, write_dataset
from multibox.data.columns import TextColumn, decode_id, encode_id
from multibox.data.picture_files import flat_names
from multibox.errors import ContractError
from multibox.spec.classes import ClassMap

NO_BOXES = np.zeros((0, 4), np.float32)
NO_LABELS = np.zeros(0, np.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": ""}, "path"),
        ({"boxes_xyxy": np.zeros((2, 5))}, r"\[N, 4\]"),
        ({"boxes_xyxy": np.full((1, 4), np.nan)}, "finite"),
        ({"labels": np.zeros(2)}, r"labels must be \[1\]"),
        ({"labels": np.array([-1])}, "0 or more"),
        ({"crowd": np.zeros(3, bool)}, r"crowd must be \[1\]"),
        ({"area": np.zeros(0)}, r"area must be \[1\]"),
        ({"size_hw": (0, 5)}, "size_hw"),
    ],
)
def test_a_record_refuses_what_breaks_its_contract(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "path": "a",
        "image_id": 1,
        "size_hw": None,
        "boxes_xyxy": np.zeros((1, 4)),
        "labels": np.zeros(1),
    }
    assert len(ImageRecord(**good)) == 1
    with pytest.raises(ContractError, match=message):
        ImageRecord(**good | changes)


def test_a_record_does_not_share_its_arrays_with_the_caller() -> None:
    mine = np.ones((1, 4), np.float32)
    record = ImageRecord("a", 1, None, mine, np.zeros(1, np.int64))
    mine[:] = 5
    assert record.boxes_xyxy.tolist() == [[1, 1, 1, 1]]
    with pytest.raises(ValueError, match="read-only"):
        record.boxes_xyxy[0] = 2
    assert [str(values.dtype) for values in (record.boxes_xyxy, record.labels, record.crowd)] == [
        "float32",
        "int64",
        "bool",
    ]


def test_a_data_set_gives_views_not_copies(small: Dataset) -> None:
    assert np.shares_memory(small[0].boxes_xyxy, small.columns.boxes_xyxy)
    assert np.shares_memory(small[0].area, small.columns.area)


def test_selection_keeps_order_and_repeats(small: Dataset) -> None:
    picked = small.select([2, 0, 2])
    assert [record.image_id for record in picked] == [3, 7, 3]
    assert [len(record) for record in picked] == [1, 2, 1]
    assert picked.splits == ("val", "train") or picked.splits == ("train", "val")
    assert len(small.select(np.array([False, True, False]))) == 1
    assert len(small.select([])) == 0
    assert [r.image_id for r in small.split("valid")] == [3]
    assert len(small.split(None)) == 0
    assert small[-1].image_id == 3
    for bad in ([3], [-1]):
        with pytest.raises(IndexError):
            small.select(bad)
    with pytest.raises(IndexError):
        small[3]


def test_ground_truth_as_detections(small: Dataset) -> None:
    truth = small.to_detections(0)
    assert truth.scores is None
    assert truth.names == ["hot dog, “warm”", "zebra"]
    assert truth.picture_size_hw == (30, 40)
    assert len(small.to_detections(1)) == 0
    sizeless = Dataset.from_records(
        [ImageRecord(path, 1, None, NO_BOXES, NO_LABELS) for path in ("b/one.png", "gone.png")],
        small.class_map,
        root=small.root,
    )
    assert sizeless.to_detections(0).picture_size_hw == (50, 20)
    with pytest.raises(DataError, match=r"gone\.png"):
        sizeless.to_detections(1)


def test_a_data_set_refuses_labels_and_splits_that_no_file_could_hold() -> None:
    record = ImageRecord("a", 1, None, np.zeros((1, 4), np.float32), np.array([1]))
    with pytest.raises(ContractError, match="0…0"):
        Dataset.from_records([record], ClassMap(("cat",)))
    for split in ("../up", "a/b", "", ".hidden"):
        with pytest.raises(ContractError, match="split"):
            Dataset.from_records([ImageRecord("a", 1, None, NO_BOXES, NO_LABELS, split=split)], ClassMap(("cat",)))


@given(st.integers(-(10**18), 10**18) | st.text(max_size=8))
def test_ids_come_back_with_their_type(image_id: int | str) -> None:
    back = decode_id(encode_id(image_id))
    assert back == image_id
    assert type(back) is type(image_id)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.data())
def test_text_columns_hold_any_text(strings: list[str], data: st.DataObject) -> None:
    column = TextColumn.from_strings(strings)
    assert list(column) == strings
    chosen = data.draw(st.lists(st.integers(0, len(strings) - 1))) if strings else []
    assert list(column.take(np.array(chosen, np.int64))) == [strings[i] for i in chosen]


def test_file_names_of_odd_bytes_survive() -> None:
    assert list(TextColumn.from_strings(["caf\udce9.jpg"])) == ["caf\udce9.jpg"]


@given(st.lists(st.text(min_size=1, max_size=6), max_size=8))
def test_flat_names_are_distinct_and_safe(paths: list[str]) -> None:
    names, _ = flat_names(paths)
    stems = [name.rpartition(".")[0].casefold() or name.casefold() for name in names]
    assert len(set(stems)) == len(paths)
    assert all(name == Path(name).name and name.isprintable() and not name.startswith(".") for name in names)


def test_flat_names_tell_folders_apart() -> None:

    names, renamed = flat_names(["x/a.jpg", "y/a.jpg", "b.jpg"])
    assert (names, renamed) == (["a.jpg", "y_a.jpg", "b.jpg"], 1)


def test_findings_are_bounded_but_counted() -> None:
    findings = Findings()
    for number in range(1000):
        findings.add("degenerate_box", f"p{number}")
        findings.add("unparsable_box", "file", f"line {number}", lost=1)
    assert findings.counts == {"degenerate_box": 1000, "unparsable_box": 1000}
    assert (len(findings.of_kind("degenerate_box")), len(findings.of_kind("unparsable_box"))) == (5, 1000)
    assert (len(findings), findings.lost_boxes) == (2000, 1000)
    merged = Findings()
    merged.merge(findings)
    assert merged.counts == findings.counts
    assert merged.summary()[0].startswith("error: 1000 × unparsable_box")


# ------------------------------------------------------------------------------------------------ processes


def _look(job: tuple[Dataset, int]) -> tuple[Any, ...]:
    dataset, index = job
    record = dataset[index]
    return (
        record.image_id,
        record.labels.tolist(),
        record.boxes_xyxy.flags.writeable,
        dataset.to_detections(index).names,
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_the_same(small: Dataset, method: str, tmp_path: Path) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    write_dataset(small, tmp_path / "t.csv")
    dataset = read_dataset(tmp_path / "t.csv")
    jobs = [(dataset, index) for index in range(len(dataset))]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_look, jobs) == [_look(job) for job in jobs]


def test_pickling_costs_the_arrays_and_keeps_them_read_only(small: Dataset) -> None:
    many = small.select(np.zeros(50_000, np.int64))
    data = pickle.dumps(many)
    assert len(data) < 100_000 * 30 + 50_000 * 70
    back = pickle.loads(data)
    assert not back.columns.boxes_xyxy.flags.writeable
    assert back[49_999].area.tolist()[1] == small[0].area.tolist()[1]
