"""Every format gives back what it was given."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibox.data import FORMATS, WRITABLE, DataError, Dataset, ImageRecord, detect_format, read_dataset, write_dataset
from multibox.data.columns import FLAGS
from multibox.data.picture_files import CopyMode
from multibox.errors import MissingDependencyError, OptionError
from multibox.spec.classes import ClassMap

SUFFIX = {"csv": ".csv", "parquet": ".parquet"}
CHAIN = ("coco", "voc", "yolo", "csv", "huggingface", "coco")
NEEDS = {"parquet": "pyarrow"}


@pytest.fixture(params=sorted(WRITABLE))
def name(request: pytest.FixtureRequest) -> str:
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return str(request.param)


def target(folder: Path, name: str) -> Path:
    return folder / f"out-{name}{SUFFIX.get(name, '')}"


def test_a_small_set_survives_every_format(
    small: Dataset, name: str, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    path = target(tmp_path, name)
    write_dataset(small, path, format=name)
    back = read_dataset(path)
    assert_same(back, small)
    assert back.findings.lost_boxes == 0
    assert FORMATS[name].title in back.origin
    assert all(back.picture_path(i).is_file() for i in range(len(back)))


@pytest.mark.parametrize("copy", ["true", "link"])
def test_pictures_are_copied_or_linked(small: Dataset, name: str, tmp_path: Path, copy: str) -> None:
    path = target(tmp_path / "new", name)
    write_dataset(small, path, format=name, copy=copy)  # type: ignore[arg-type]
    back = read_dataset(path)
    for i in range(len(back)):
        picture = back.picture_path(i)
        assert picture.is_relative_to(tmp_path / "new")
        assert picture.is_symlink() == (copy == "link")
    sizes = sorted(back.declared_size_hw(i) or () for i in range(len(back)))
    assert sizes == [(8, 8), (30, 40), (50, 20)]


def test_an_occupied_target_is_refused(small: Dataset, name: str, tmp_path: Path) -> None:
    path = target(tmp_path, name)
    write_dataset(small, path, format=name)
    with pytest.raises(DataError, match="exist_ok=true"):
        write_dataset(small, path, format=name)
    write_dataset(small, path, format=name, exist_ok=True)
    assert len(read_dataset(path)) == len(small)


def test_a_split_is_read_alone(small: Dataset, name: str, tmp_path: Path) -> None:
    path = target(tmp_path, name)
    write_dataset(small, path, format=name)
    train = read_dataset(path, split="train")
    assert train.splits == ("train",)
    assert [len(record) for record in train] == [2, 0]
    assert train.class_map == small.class_map
    with pytest.raises(DataError, match=r"train|train, val"):
        read_dataset(path, split="bicycle")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["bccd", "voc_sample", "coco_val128"])
def test_the_chain_of_formats_keeps_real_sets(
    folder: str, data_folder: Path, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    first = read_dataset(data_folder / folder, format="coco" if folder == "coco_val128" else None)
    assert first.findings.lost_boxes == 0
    expected = {"bccd": (364, 4888), "voc_sample": (839, 1617), "coco_val128": (128, 898)}[folder]
    assert (len(first), first.num_boxes) == expected
    current = first = first.select(range(0, len(first), 8 if len(first) > 200 else 2))
    for step, name in enumerate(CHAIN):
        path = tmp_path / f"{step}-{name}{SUFFIX.get(name, '')}"
        write_dataset(current, path, format=name)
        current = read_dataset(path, check_pictures=False)
        assert_same(current, first)
    rounded = tmp_path / "rounded"
    report = write_dataset(first, rounded, format="voc", round_boxes=True)
    assert_same(read_dataset(rounded, check_pictures=False), first, px=0.5001 if folder == "coco_val128" else 0)
    assert any("rounded" in note for note in report.notes) == (folder == "coco_val128")


def test_both_forms_of_the_coco_sample_agree(data_folder: Path) -> None:
    coco = read_dataset(data_folder / "coco_val128", format="coco")
    yolo = read_dataset(data_folder / "coco_val128", format="yolo")
    assert coco.class_map.names == yolo.class_map.names
    names = {Path(record.path).name: record for record in yolo}
    for record in coco:
        other = names[Path(record.path).name]
        assert record.labels.tolist() == other.labels.tolist()
        np.testing.assert_allclose(record.boxes_xyxy, other.boxes_xyxy, atol=0.011)


def test_an_ambiguous_folder_names_both_and_the_option(tmp_path: Path, small: Dataset) -> None:
    write_dataset(small, tmp_path / "set", format="voc")
    write_dataset(small, tmp_path / "set", format="yolo", exist_ok=True)
    with pytest.raises(DataError, match=r"Pascal VOC.*YOLO text.*format=voc or format=yolo"):
        detect_format(tmp_path / "set")


def test_of_coco_and_yolo_in_one_folder_coco_is_read_and_the_other_named(data_folder: Path) -> None:
    name, evidence = detect_format(data_folder / "coco_val128")
    assert name == "coco"
    assert "besides data.yaml, which format=yolo reads" in evidence


def test_what_is_no_data_set_is_refused(tmp_path: Path, small: Dataset) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="no data set in a known format"):
        read_dataset(tmp_path / "source")
    write_dataset(small, tmp_path / "kit" / "VOC2012", format="voc")
    with pytest.raises(DataError, match=r"did you mean .*VOC2012"):
        read_dataset(tmp_path / "kit")
    with pytest.raises(OptionError, match="'coco'"):
        read_dataset(tmp_path, format="cocoo")
    with pytest.raises(OptionError, match="format="):
        write_dataset(small, tmp_path / "x")
    with pytest.raises(DataError, match="copy=link"):
        write_dataset(small, tmp_path / "y", format="yolo", copy="false")


def test_a_missing_package_is_named(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"multibox\[data\]"):
        write_dataset(small, tmp_path / "out.parquet")


@pytest.mark.parametrize("copy", ["true", "link"])
def test_writing_again_finds_its_own_pictures(
    copy: CopyMode, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)  # then a copy stands in for the link
    for _ in range(2):
        write_dataset(small, tmp_path / "out", format="voc", copy=copy, exist_ok=True)
    target = next((tmp_path / "out/JPEGImages").iterdir())
    target.write_bytes(target.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="is another picture"):
        write_dataset(small, tmp_path / "out", format="voc", copy=copy, exist_ok=True)


# ------------------------------------------------------------------------------------------------ generated sets

_printable = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
_class_names = st.lists(
    st.text(_printable, min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=5, unique=True
)
_ids = (
    st.integers(-(2**53), 2**53)
    | st.text(_printable, max_size=8)
    | st.sampled_from(["1", "01", '"1"', "null", "é,\" '"])
)
_file_names = st.text(_printable.filter(lambda c: c not in "\\"), min_size=1, max_size=10)
_splits = st.sampled_from([None, "train", "val", "test", "extra set"])
_coordinates = st.floats(-50, 5000, width=32)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    names = draw(_class_names)
    class_ids = draw(st.lists(st.integers(0, 10**6), min_size=len(names), max_size=len(names), unique=True))
    records: list[ImageRecord] = []
    for image_id in draw(st.lists(_ids, max_size=5, unique_by=repr)):
        count = draw(st.integers(0, 4))
        corners = draw(st.lists(st.tuples(*[_coordinates] * 4), min_size=count, max_size=count))
        flags = {f: np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool) for f in FLAGS}
        areas = draw(st.lists(st.just(np.nan) | st.floats(0, 1e8), min_size=count, max_size=count))
        labels = draw(st.lists(st.integers(0, len(names) - 1), min_size=count, max_size=count))
        records.append(
            ImageRecord(
                f"{len(records)}/{draw(_file_names)}.jpg".replace("//", "/"),
                image_id,
                (draw(st.integers(1, 20000)), draw(st.integers(1, 20000))),
                np.array(corners, np.float32).reshape(-1, 4),
                np.array(labels, np.int64),
                **flags,
                area=np.array(areas, np.float64),
                split=draw(_splits),
            )
        )
    return Dataset.from_records(records, ClassMap(tuple(names), tuple(class_ids)), root="/nowhere")


@pytest.mark.slow
@given(dataset=datasets())
@settings(max_examples=25)
@pytest.mark.parametrize("generated", sorted(WRITABLE))
def test_generated_sets_survive_every_format(
    generated: str, dataset: Dataset, assert_same: Callable[..., None]
) -> None:
    if generated in NEEDS:
        pytest.importorskip(NEEDS[generated])
    with tempfile.TemporaryDirectory() as folder:
        path = target(Path(folder), generated)
        write_dataset(dataset, path, format=generated)
        back = read_dataset(path, format=generated, check_pictures=False)
        assert back.findings.lost_boxes == 0
        assert_same(back, dataset)
