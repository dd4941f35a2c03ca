"""The data doctor: every kind of fault planted in every format that can hold it, and a clean set without findings."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from multibox.cli.check import command
from multibox.data import Dataset, ImageRecord, read_dataset, write_dataset
from multibox.data.findings import DataError
from multibox.doctor import FINDING_KINDS, Policy, examine, repair_dataset, write_repaired, write_report
from multibox.doctor.box_checks import check_boxes
from multibox.doctor.picture_checks import near_pairs
from multibox.errors import MultiboxError, OptionError
from multibox.spec.classes import ClassMap

FORMATS = ("coco", "voc", "yolo", "csv", "huggingface")
CLASSES = ClassMap(("cat", "dog", "bird"))
SIZE_HW = (60, 80)
ORIENTATION = 0x0112


def check(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def picture(seed: int, size_hw: tuple[int, int] = SIZE_HW) -> Image.Image:
    """Smooth random patches: unlike every other picture, alike after compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.BICUBIC)


def clean_set(root: Path, count: int = 12) -> list[ImageRecord]:
    """Records with three boxes each, one of each class; the last third is validation."""
    (root / "p").mkdir(parents=True)
    records = []
    for i in range(count):
        picture(i).save(root / "p" / f"{i:03d}.jpg", quality=92)
        boxes = np.array([[2, 3, 30, 40], [35, 5, 70, 30], [10, 42, 44, 58]], np.float32) + i % 2
        split = "train" if i < 8 else "val"
        records.append(ImageRecord(f"p/{i:03d}.jpg", i, SIZE_HW, boxes, np.array([0, 1, 2]), split=split))
    return records


def with_boxes(record: ImageRecord, boxes: list[list[float]], labels: list[int]) -> ImageRecord:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    label = np.array(labels, np.int64)
    return ImageRecord(record.path, record.image_id, record.size_hw, array, label, split=record.split)


def written(records: list[ImageRecord], root: Path, target: Path, format: str, class_map: ClassMap = CLASSES) -> Path:
    place = target / "table.csv" if format == "csv" else target
    write_dataset(Dataset.from_records(records, class_map, root=root), place, format=format, copy="true")
    return place


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ------------------------------------------------------------------------------------------------ planted faults

Edit = Callable[[list[ImageRecord], Path], list[ImageRecord]]


@dataclass(frozen=True)
class Plant:
    """A fault: the kind to be found, and what makes it, before (`records`) or after the set is written (`file`)."""

    kind: str
    records: Edit | None = None
    file: Callable[[Path], None] | None = None
    classes: ClassMap = CLASSES
    formats: tuple[str, ...] = FORMATS


def boxes_plant(kind: str, boxes: list[list[float]], labels: list[int] | None = None) -> Plant:
    def plant(records: list[ImageRecord], _: Path) -> list[ImageRecord]:
        old = records[1]
        merged = [*old.boxes_xyxy.tolist(), *boxes]
        return [records[0], with_boxes(old, merged, [0, 1, 2, *(labels or [0] * len(boxes))]), *records[2:]]

    return Plant(kind, records=plant)


def reuse(source: int, target: int, how: Callable[[Path, Path], object]) -> Edit:
    def plant(records: list[ImageRecord], root: Path) -> list[ImageRecord]:
        how(root / records[source].path, root / records[target].path)
        return records

    return plant


def copied(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def recompressed(source: Path, target: Path) -> None:
    Image.open(source).save(target, quality=60)


def paged(source: Path, target: Path) -> None:
    one = picture(1)
    one.save(target, "TIFF", save_all=True, append_images=[one])


def in_integers(source: Path, target: Path) -> None:
    Image.fromarray(np.asarray(picture(1).convert("L"), np.int32)).save(target, "TIFF")


def turned(declared_hw: tuple[int, int], *, orientation: int = 6) -> Edit:
    """Picture 2 becomes one stored 60 high and 80 wide that EXIF turns upright."""

    def plant(records: list[ImageRecord], root: Path) -> list[ImageRecord]:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture(2).save(root / records[2].path, exif=exif)
        return [*records[:2], replace(records[2], size_hw=declared_hw, boxes_xyxy=records[2].boxes_xyxy), *records[3:]]

    return plant


def no_class(label: int, where: range) -> Edit:
    def plant(records: list[ImageRecord], _: Path) -> list[ImageRecord]:
        out = []
        for i, record in enumerate(records):
            keep = (record.labels != label) | (i not in where)
            out.append(with_boxes(record, record.boxes_xyxy[keep].tolist(), record.labels[keep].tolist()))
        return out

    return plant


def crowded(records: list[ImageRecord], root: Path) -> list[ImageRecord]:
    """Very many boxes of class 0, few of class 2."""
    grid = [[x, y, x + 5.0, y + 5.0] for x in range(0, 72, 6) for y in range(0, 54, 6)]
    many = [with_boxes(r, [*r.boxes_xyxy.tolist(), *grid], [0, 1, 2, *[0] * len(grid)]) for r in records]
    return no_class(2, range(1, 8))(many, root)


def any_picture(folder: Path, stem: str) -> Path:
    return next(file for file in sorted(folder.rglob("*.jpg")) if file.stem.endswith(stem))


def cut_short(folder: Path) -> None:
    file = any_picture(folder, "003")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def removed(folder: Path) -> None:
    any_picture(folder, "003").unlink()


def overwritten(folder: Path) -> None:
    any_picture(folder, "003").write_bytes(b"not a picture" * 9)


def removed_with_sidecar(folder: Path) -> None:
    removed(folder)
    (folder / "multibox.jsonl").unlink()


def listed_twice(folder: Path) -> None:
    (folder / "ImageSets/Main/val.txt").write_text("001\n008\n009\n010\n011\n")


def replaced_picture(folder: Path) -> None:
    picture(3, (48, 64)).save(any_picture(folder, "003"))


def edited(format: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    files = {
        "coco": "annotations/instances_train.json", "voc": "Annotations/001.xml", "yolo": "labels/train/001.txt",
        "csv": "table.csv", "huggingface": "train/metadata.jsonl",
    }  # fmt: skip

    def change(folder: Path) -> None:
        file = folder / files[format]
        text = file.read_text()
        assert edit(text) != text
        file.write_text(edit(text))

    return change


PLANTS = [
    Plant("picture_missing", file=removed),
    Plant("picture_unreadable", file=overwritten),
    Plant("picture_truncated", file=cut_short),
    Plant("size_differs", file=replaced_picture, formats=("coco", "voc", "csv", "huggingface")),
    Plant("size_turned", turned(SIZE_HW), formats=("coco", "voc", "csv", "huggingface")),
    Plant("exif_rotated", turned(SIZE_HW[::-1])),
    Plant("exif_rotated", turned(SIZE_HW, orientation=3)),
    Plant("duplicate_across", reuse(1, 9, copied)),
    Plant("duplicate_within", reuse(1, 2, copied)),
    Plant("near_duplicate_across", reuse(1, 9, recompressed)),
    Plant("near_duplicate_within", reuse(1, 2, recompressed)),
    boxes_plant("degenerate_box", [[20, 20, 20, 30]]),
    boxes_plant("boxes_outside", [[50, 40, 90, 55]]),
    boxes_plant("boxes_far_outside", [[200, 40, 300, 55]]),
    boxes_plant("boxes_duplicated", [[3, 4, 31, 41]]),
    boxes_plant("boxes_two_classes", [[3, 4, 31, 41]], [1]),
    boxes_plant("boxes_tiny", [[60, 50, 62, 58]]),
    boxes_plant("boxes_extreme_ratio", [[2, 55, 78, 58.5]]),
    Plant("empty", lambda records, _: [with_boxes(records[0], [], []), *records[1:]]),
    Plant("class_unused", classes=ClassMap(("cat", "dog", "bird", "cow"))),
    Plant("class_names_alike", classes=ClassMap(("cat", "dog", "Dog "))),
    Plant("class_not_in_train", no_class(2, range(8))),
    Plant("class_not_in_validation", no_class(2, range(8, 12))),
    Plant("imbalance", crowded),
    *(
        Plant("unparsable_box", file=edited(format, edit), formats=(format,))
        for format, edit in {
            "coco": lambda text: re.sub(r'"bbox": \[[^,]*,', '"bbox": ["?",', text, count=1),
            "voc": lambda text: re.sub(r"<xmin>.*?</xmin>", "<xmin>?</xmin>", text, count=1),
            "yolo": lambda text: text.replace(" ", " ? ", 1),
            "csv": lambda text: text.replace(",cat,0,", ",cat,0,?", 1),
            "huggingface": lambda text: re.sub(r'"bbox": \[\[[^,]*,', '"bbox": [["?",', text, count=1),
        }.items()
    ),
    *(
        Plant("unknown_class", file=edited(format, edit), formats=(format,))
        for format, edit in {
            "coco": lambda text: text.replace('"category_id": 0', '"category_id": 77', 1),
            "voc": lambda text: text.replace("<name>cat</name>", "<name>cow</name>", 1),
            "yolo": lambda text: "77" + text[1:],
            "csv": lambda text: text.replace(",cat,0,", ",cow,,", 1),
            "huggingface": lambda text: text.replace('"category": [0', '"category": [77', 1),
        }.items()
    ),
    Plant("picture_pages", reuse(1, 1, paged), formats=("coco", "yolo")),
    Plant("picture_scaled", reuse(1, 1, in_integers), formats=("voc", "yolo")),
    Plant("unparsable_annotation", file=edited("voc", lambda text: text[:100]), formats=("voc",)),
    Plant("not_normalised", file=edited("yolo", lambda text: "0 40 30 20 10\n" + text), formats=("yolo",)),
    Plant(
        "label_without_picture",
        file=removed_with_sidecar,
        formats=("yolo",),
    ),
    Plant(
        "in_several_splits",
        file=listed_twice,
        formats=("voc",),
    ),
    Plant(
        "conflicting_size",
        file=edited("csv", lambda text: text.replace(",80,60,dog", ",81,60,dog", 1)),
        formats=("csv",),
    ),
]
CASES = [(plant, format) for plant in PLANTS for format in plant.formats]


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "format"), CASES, ids=lambda value: getattr(value, "kind", value))
def test_every_planted_fault_is_found_and_repaired(plant: Plant, format: str, tmp_path: Path) -> None:
    records = clean_set(tmp_path / "source")
    if plant.records is not None:
        records = plant.records(records, tmp_path / "source")
    place = written(records, tmp_path / "source", tmp_path / "data", format, plant.classes)
    if plant.file is not None:
        plant.file(tmp_path / "data")
    before = digests(tmp_path / "data")

    examination = examine(read_dataset(place, format=format, check_pictures=False), deep=True, workers=2)
    assert plant.kind in examination.counts, examination.counts
    assert any(line.split(" × ")[-1].startswith(plant.kind + ":") for line in examination.lines())
    # What a fault brings along is no error, apart from what it is.
    others = {kind for kind in examination.level("error") if kind != plant.kind}
    assert others <= {"not_normalised", "size_unknown", "boxes_far_outside", "label_without_picture"}, others

    repaired = repair_dataset(examination)
    _, copy = write_repaired(repaired, place, tmp_path / "copy", format=format)
    again = examine(read_dataset(copy, format=format, check_pictures=False), deep=True)
    unrepairable = {kind for kind in examination.level("error") if FINDING_KINDS[kind].repair is None}
    assert set(again.level("error")) == unrepairable, again.counts
    assert not again.level("fix")
    lost = len(examination.dataset) - len(again.dataset)
    assert (
        sum(": left out with its" in line for line in repaired.lines) == lost or plant.kind == "label_without_picture"
    )
    if any(examination.policy.repairs(kind) for kind in examination.counts):
        assert repaired.lines
    assert digests(tmp_path / "data") == before


def test_every_kind_of_the_doctors_own_is_planted() -> None:
    from multibox.doctor.kinds import OWN_KINDS

    assert {plant.kind for plant in PLANTS} >= OWN_KINDS


@pytest.mark.parametrize("format", FORMATS)
def test_a_clean_set_has_no_findings(format: str, tmp_path: Path) -> None:
    place = written(clean_set(tmp_path / "source"), tmp_path / "source", tmp_path / "data", format)
    result = check(place, "deep=true", "--json")
    told = json.loads(result.stdout)
    assert result.return_value == 0
    assert told["status"] == "clean"
    assert told["counts"] == {}
    assert told["findings"] == []
    assert told["not_checked"] == []
    assert (told["pictures"], told["boxes"]) == (12, 36)
    assert told["classes"]["dog"] == {"train": 8, "val": 4}


# ------------------------------------------------------------------------------------------------ command line


def faulty(tmp_path: Path) -> Path:
    records = boxes_plant("", [[50, 40, 90, 55], [20, 20, 20, 30]]).records
    assert records is not None
    return written(records(clean_set(tmp_path / "source"), tmp_path), tmp_path / "source", tmp_path / "data", "voc")


@pytest.mark.parametrize(
    ("policy", "status", "word"),
    [
        ("", 1, "error"),
        ("degenerate_box=warn", 0, "warn"),
        ("degenerate_box=fix", 0, "fix"),
        ("degenerate_box=ignore,boxes_outside=error", 1, "ignored"),
        ("degenerate_box=ignore, boxes_outside=ignore", 0, "ignored"),
    ],
)
def test_the_policy_decides_level_and_exit_status(policy: str, status: int, word: str, tmp_path: Path) -> None:
    result = check(faulty(tmp_path), f"policy={policy}")
    assert result.return_value == status
    lines = result.stdout.splitlines()
    assert any(line.startswith(f"{word}: ") and "1 × degenerate_box" in line for line in lines)
    assert any(line.startswith("not checked: ") and "deep=true" in line for line in lines)


def test_fix_writes_a_clean_copy_and_says_every_change(tmp_path: Path) -> None:
    place = faulty(tmp_path)
    before = digests(tmp_path / "data")
    result = check(place, f"fix={tmp_path / 'copy'}", f"report={tmp_path / 'r.html'}")
    assert result.return_value == 0
    fixed = [line for line in result.stdout.splitlines() if line.startswith("fixed: ")]
    assert fixed == [
        "fixed: JPEGImages/001.jpg, box 4: left out (degenerate_box: (x1, y1, x2, y2) = (20, 20, 20, 30) has no area "
        "or swapped corners)",
        "fixed: JPEGImages/001.jpg, box 3: cut to (50, 40, 80, 55)",
    ]
    assert check(tmp_path / "copy", "deep=true").return_value == 0
    assert read_dataset(tmp_path / "copy")[1].boxes_xyxy[-1].tolist() == [50, 40, 80, 55]
    assert not [file for file in (tmp_path / "copy").rglob("*") if file.is_symlink()]
    assert digests(tmp_path / "data") == before
    told = json.loads(check(place, "--json", f"fix={tmp_path / 'second'}").stdout)
    assert told["status"] == "errors"
    assert told["copy"]["status"] == "clean"
    assert len(told["copy"]["changes"]) == 2


@pytest.mark.parametrize("where", ["data", "data/inside", "taken"])
def test_fix_never_writes_into_the_original_or_other_files(where: str, tmp_path: Path) -> None:
    place = faulty(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    before = digests(tmp_path)
    with pytest.raises(MultiboxError, match=r"choose (a|another) folder"):
        check(place, f"fix={tmp_path / where}")
    assert digests(tmp_path) == before


def test_leaks_leave_train_and_stay_in_validation(tmp_path: Path) -> None:
    records = reuse(1, 9, copied)(clean_set(tmp_path / "source"), tmp_path / "source")
    place = written(records, tmp_path / "source", tmp_path / "data", "yolo")
    check(place, f"fix={tmp_path / 'copy'}")
    paths = list(read_dataset(tmp_path / "copy").paths)
    assert "images/train/p_001.jpg" not in paths
    assert any(path.endswith("009.jpg") for path in paths)
    assert len(paths) == 11


def test_boxes_of_turned_pictures_are_turned(tmp_path: Path) -> None:
    """The same object, annotated on the stored pixels, ends up where it is seen, for all four orientations."""
    seen = np.zeros((80, 60, 3), np.uint8)
    seen[50:70, 5:25] = 255  # upright
    back = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    records = []
    for orientation, method in back.items():
        stored = Image.fromarray(seen).transpose(method)
        rows, columns = np.nonzero(np.asarray(stored)[..., 0])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored.save(tmp_path / f"{orientation}.png", exif=exif)
        records.append(ImageRecord(f"{orientation}.png", orientation, (60, 80), np.array([box]), np.array([0])))
    repaired = repair_dataset(examine(Dataset.from_records(records, CLASSES, root=tmp_path)))
    assert [record.boxes_xyxy.tolist() for record in repaired.dataset] == [[[5, 50, 25, 70]]] * 4
    assert {record.size_hw for record in repaired.dataset} == {(80, 60)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("policy=emty=warn",), "did you mean 'empty'"),
        (("policy=empty=loud",), "must be error, warn, fix, ignore"),
        (("policy=empty",), "has no level"),
        (("policy=imbalance=fix",), "cannot be repaired"),
        (("report=r.pdf",), "must be an .html"),
        (("model=ssdlite30-coco",), "did you mean"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(MultiboxError, match=message):
        check(tmp_path, *arguments)


def test_workers_must_be_positive(tmp_path: Path) -> None:
    dataset = Dataset.from_records(clean_set(tmp_path), CLASSES, root=tmp_path)
    with pytest.raises(OptionError, match="at least 1"):
        examine(dataset, workers=0)


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    dataset = Dataset.from_records(clean_set(tmp_path) * 6, CLASSES, root=tmp_path)
    steps: list[int] = []
    examine(dataset, workers=2, progress=steps.append)
    assert sum(steps) == len(dataset) == 72


def test_quiet_prints_errors_only(tmp_path: Path) -> None:
    lines = check(faulty(tmp_path), "--quiet").stdout.splitlines()
    assert lines
    assert {line.partition(":")[0].strip() for line in lines} == {"error", "JPEGImages/001.jpg, box 4"}
    fixed = check(tmp_path / "data", "--quiet", f"fix={tmp_path / 'copy'}").stdout.splitlines()
    assert fixed[: len(lines)] == lines
    assert [line.partition(":")[0] for line in fixed[len(lines) :]] == ["fixed", "fixed"]


# ------------------------------------------------------------------------------------------------ report


def test_the_report_is_one_file_with_pictures(tmp_path: Path) -> None:
    records = reuse(1, 9, copied)(clean_set(tmp_path / "source"), tmp_path / "source")
    names = ClassMap(("cat", "<b>dog", "bird & co"))
    place = written(records, tmp_path / "source", tmp_path / "data", "coco", names)
    any_picture(tmp_path / "data", "005").write_bytes(b"<script>")
    check(place, "deep=true", "model=ssdlite300-coco", f"report={tmp_path / 'r.html'}")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") >= 2
    references = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"' )>]{1,12})", text)
    assert references
    assert all(value.startswith(("data:image", "#")) for value in references), references
    assert text.count("<script") == 1
    assert "<b>dog" not in text
    assert "&lt;b&gt;dog" in text
    for word in ("duplicate_across", "picture_unreadable", "Default boxes", "no match", "<svg"):
        assert word in text


def test_a_full_disk_leaves_the_earlier_report(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    examination = examine(Dataset.from_records(clean_set(tmp_path), CLASSES, root=tmp_path))
    report = tmp_path / "r.html"
    report.write_text("earlier")
    with full_disk(1000), pytest.raises(DataError, match="cannot be written"):
        write_report(examination, report)
    assert report.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["r.html"]
    write_report(examination, report)
    assert report.stat().st_size > 1000


def test_thumbnails_are_bounded(tmp_path: Path) -> None:
    records = [with_boxes(record, [], []) for record in clean_set(tmp_path / "source")]
    dataset = Dataset.from_records(records, CLASSES, root=tmp_path / "source")
    write_report(examine(dataset), tmp_path / "r.html", thumbnails=4)
    assert (tmp_path / "r.html").read_text().count("data:image/jpeg") == 4


# ------------------------------------------------------------------------------------------------ parts


def test_near_pairs_equal_all_pairs() -> None:
    """Bands overlook no pair that comparing everything with everything finds."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 256, (60, 16, 17)).astype(np.int16)
    second = np.clip(first + rng.integers(-9, 10, first.shape) * rng.integers(0, 2, (60, 1, 1)), 0, 255)
    thumbnails = np.concatenate([first, second]).astype(np.uint8)
    steps = np.diff(thumbnails.astype(np.int16), axis=2)
    bits = (steps > 2).reshape(len(thumbnails), -1)
    expected = [
        (a, b)
        for a in range(120)
        for b in range(a + 1, 120)
        if (bits[a] != bits[b]).sum() <= 15
        and np.abs(thumbnails[a].astype(int) - thumbnails[b].astype(int)).mean() <= 6
    ]
    assert len(expected) >= 20
    assert near_pairs(thumbnails).tolist() == [list(pair) for pair in expected]
    assert near_pairs(thumbnails[:0]).shape == (0, 2)


def test_pictures_of_unknown_size_and_empty_sets_are_no_trouble(tmp_path: Path) -> None:
    record = ImageRecord("none.png", 1, None, np.array([[0, 0, 9000, 9000]]), np.array([0]))
    dataset = Dataset.from_records([record], ClassMap(("cat",)), root=tmp_path)
    assert examine(dataset).counts == {"picture_missing": 1}
    nothing = dataset.select(np.zeros(0, np.int64))
    assert examine(nothing, deep=True).counts == {"class_unused": 1}
    assert list(check_boxes(nothing, np.zeros((0, 2), np.int32))) == []
    assert repair_dataset(examine(dataset)).dataset.num_boxes == 0


def test_policy_levels() -> None:
    policy = Policy({"empty": "fix"})
    assert policy.repairs("empty")
    assert not Policy().repairs("empty")
    assert not policy.repairs("imbalance")
    assert policy["picture_missing"] == "error"


def test_real_data(data_folder: Path) -> None:
    """What was looked at by hand: two specks in the blood cells; no errors anywhere."""
    cells = examine(read_dataset(data_folder / "bccd", check_pictures=False), deep=True, workers=2)
    assert cells.counts == {"no_class_list": 1, "boxes_tiny": 2}
    coco = examine(read_dataset(data_folder / "coco_val128", format="coco", check_pictures=False))
    assert coco.status == "warnings"
    assert len(coco.of_kind("class_unused")) == 7


def test_a_table_is_repaired_into_a_folder(tmp_path: Path) -> None:
    records = boxes_plant("", [[20, 20, 20, 30]]).records
    assert records is not None
    place = written(records(clean_set(tmp_path / "s"), tmp_path), tmp_path / "s", tmp_path / "data", "csv")
    assert check(place, f"fix={tmp_path / 'copy'}").return_value == 0
    with (tmp_path / "copy" / "annotations.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 36
