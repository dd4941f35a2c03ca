"""Proposed default boxes: they fit what they were fitted to, are never worse, and keep the network as it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multibox.data import Dataset, ImageRecord, read_dataset
from multibox.data.findings import DataError, Findings
from multibox.data.picture_files import check_sizes
from multibox.doctor.anchor_search import _bands
from multibox.doctor.anchors import (
    AnchorProposal,
    load_anchor_spec,
    propose_anchors,
    save_anchor_spec,
)
from multibox.errors import ContractError
from multibox.spec.anchors import AnchorSpec, ssd_anchors, tf_anchors, tinyssd_anchors
from multibox.spec.classes import ClassMap

CLASSES = ClassMap(("cat", "dog"))
MAPS = ((19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1))
SIZE_HW = (300, 300)
SPEC = tf_anchors()


def dataset_of(boxes_xyxy: np.ndarray, per_picture: int = 4, size_hw: tuple[int, int] = SIZE_HW) -> Dataset:
    records = [
        ImageRecord(f"{number}.png", number, size_hw, part, np.arange(len(part)) % 2)
        for number, part in enumerate(np.array_split(boxes_xyxy, max(1, len(boxes_xyxy) // per_picture)))
    ]
    return Dataset.from_records(records, CLASSES)


def propose(dataset: Dataset, spec: AnchorSpec = SPEC, **changed: object) -> AnchorProposal:
    sizes = np.array([dataset.declared_size_hw(i) or (-1, -1) for i in range(len(dataset))], np.int32).reshape(-1, 2)
    places = {"feature_sizes_hw": MAPS, "size_hw": SIZE_HW, **changed}
    return propose_anchors(dataset, sizes, spec, **places)  # type: ignore[arg-type]


def anywhere(sides_wh: np.ndarray, size_hw: tuple[int, int] = SIZE_HW, seed: int = 0) -> np.ndarray:
    """Boxes of these sides at random places, whole inside the picture."""
    corner = np.random.default_rng(seed).uniform(0, 1, sides_wh.shape) * (np.array(size_hw[::-1]) - sides_wh)
    return np.concatenate([corner, corner + sides_wh], axis=1).astype(np.float32)


def mixed(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale, ratio = np.exp(rng.uniform(math.log(12), math.log(250), count)), np.exp(rng.normal(0, 0.5, count))
    return anywhere(np.minimum(np.stack([scale * ratio**0.5, scale / ratio**0.5], axis=1), 299), seed=seed)


# ------------------------------------------------------------------------------------------------ what is proposed


def test_objects_of_one_shape_get_a_box_of_that_shape() -> None:
    proposal = propose(dataset_of(anywhere(np.tile([170.0, 32.0], (400, 1)))))
    assert proposal.changed
    assert proposal.before.share < 0.1
    assert proposal.after.share > 0.95
    assert proposal.held_out_after.share > 0.95
    assert proposal.after.objects == 400
    assert proposal.held_out_after.objects == 200
    shapes = [(300 * w, 300 * h) for level in proposal.spec.levels for w, h in level]
    nearest = min(abs(math.log(w / 170)) + abs(math.log(h / 32)) for w, h in shapes)
    assert nearest < 0.35  # between cells a box a little larger or smaller than the objects fits best


@pytest.mark.parametrize(
    ("spec", "maps", "size_hw"),
    [
        (tf_anchors(levels=3), ((19, 10), (10, 5), (5, 3)), (300, 150)),
        (tinyssd_anchors(), ((20, 40), (10, 20), (5, 10), (3, 5), (1, 1)), (160, 320)),
        (
            ssd_anchors((0.1, 0.2, 0.5, 0.9), ((2,), (2, 3), (2,)), steps=(8, 16, 32), nominal_size_hw=(128, 128)),
            ((16, 16), (8, 8), (4, 4)),
            (128, 128),
        ),
        *((replace(SPEC, clip=clip), MAPS, SIZE_HW) for clip in ("wh", "cxcywh", "xyxy")),
    ],
)
def test_every_kind_of_specification(
    spec: AnchorSpec, maps: tuple[tuple[int, int], ...], size_hw: tuple[int, int]
) -> None:
    """Counts, places and clipping stay, and the shape that all objects have is found, whatever the reference side."""
    sides = np.tile(np.array([0.2, 0.5]) * size_hw[::-1], (300, 1))
    proposal = propose(
        dataset_of(anywhere(sides, size_hw), size_hw=size_hw), spec, feature_sizes_hw=maps, size_hw=size_hw
    )
    assert proposal.changed
    assert proposal.spec.boxes_per_cell == spec.boxes_per_cell
    assert replace(proposal.spec, levels=spec.levels) == spec
    assert proposal.after.share > 0.9
    assert proposal.after.score > proposal.before.score


@pytest.mark.parametrize("seed", range(4))
def test_never_worse(seed: int) -> None:
    proposal = propose(dataset_of(mixed(240, seed)))
    assert proposal.spec.boxes_per_cell == SPEC.boxes_per_cell
    assert proposal.after.score >= proposal.before.score
    assert proposal.after.matched >= proposal.before.matched
    assert proposal.held_out_after.score >= proposal.held_out_before.score
    assert proposal.held_out_after.matched >= proposal.held_out_before.matched
    assert proposal.changed == (proposal.spec != SPEC) == (proposal.after != proposal.before)
    assert sum(row[1] for row in proposal.after.by_level) == proposal.after.objects


def test_what_fits_already_stays() -> None:
    anchors = SPEC.generate(MAPS, SIZE_HW).astype(np.float64)
    corners = np.concatenate([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], axis=1)
    inside = corners[((corners > 0) & (corners < 1)).all(axis=1)] * 300
    proposal = propose(dataset_of(inside))
    assert not proposal.changed
    assert proposal.spec is SPEC
    assert proposal.after == proposal.before
    assert proposal.before.mean_iou > 0.999
    assert any("no exchange of a box is worth it" in note for note in proposal.notes)


def test_what_only_one_half_has_is_refused() -> None:
    """Long boxes in the pictures that are fitted to, none in the others: no reason to change."""
    long, fitting = anywhere(np.tile([10.0, 120.0], (100, 1))), anywhere(np.tile([105.0, 105.0], (100, 1)))
    records = [
        ImageRecord(f"{i}.png", i, SIZE_HW, np.stack([long[i], long[i]] if i % 2 == 0 else [fitting[i]] * 2), [0, 0])
        for i in range(100)
    ]
    proposal = propose(Dataset.from_records(records, CLASSES))
    assert not proposal.changed
    assert proposal.spec is SPEC
    assert "the present boxes are kept: " in proposal.notes[-1]


def test_equal_input_gives_equal_boxes() -> None:
    first, second = (propose(dataset_of(mixed(300))) for _ in range(2))
    assert first == second
    assert first.changed


def test_proposing_again_from_the_proposal_changes_little() -> None:
    dataset = dataset_of(mixed(300))
    once = propose(dataset)
    twice = propose(dataset, once.spec)
    assert twice.before == once.after
    assert twice.after.score - once.after.score < 0.02


def test_class_that_loses_matches_is_named() -> None:
    """Many objects of one shape take the box that a few of another class had."""
    few = anywhere(np.tile([60.0, 20.0], (12, 1)), seed=5)
    many = anywhere(np.tile([20.0, 60.0], (400, 1)), seed=6)
    single = AnchorSpec(levels=(((0.2, 0.07),),))
    records = [
        ImageRecord(f"{i}.png", i, SIZE_HW, np.concatenate([many[i::100], few[i : i + 1]]), [0] * 4 + [1] * (i < 12))
        for i in range(100)
    ]
    proposal = propose(Dataset.from_records(records, CLASSES), single, feature_sizes_hw=((19, 19),))
    assert proposal.changed
    assert any(note.startswith("1 of 2 classes have fewer objects with a match: dog") for note in proposal.notes)


# ------------------------------------------------------------------------------------------------ odd inputs


@pytest.mark.parametrize("kind", ["nothing", "no objects", "crowd", "no area", "unknown size", "few", "one picture"])
def test_nothing_to_fit_to(kind: str) -> None:
    boxes = anywhere(np.tile([170.0, 32.0], (100, 1)))
    record = ImageRecord("a.png", 1, SIZE_HW, boxes, np.zeros(100, np.int64))
    records = {
        "nothing": [],
        "no objects": [ImageRecord("a.png", 1, SIZE_HW, boxes[:0], [])],
        "crowd": [replace(record, crowd=np.ones(100, np.bool_))],
        "no area": [replace(record, boxes_xyxy=boxes[:, [0, 1, 0, 3]])],
        "unknown size": [replace(record, size_hw=None)],
        "few": list(dataset_of(boxes[:49])),
        "one picture": [record],
    }[kind]
    proposal = propose(Dataset.from_records(records, CLASSES))
    assert not proposal.changed
    assert proposal.spec is SPEC
    assert "kept" in proposal.notes[-1]
    assert "NaN" not in json.dumps(proposal.to_dict(), allow_nan=False)
    assert proposal.before.objects == {"few": 49, "one picture": 100}.get(kind, 0)
    left_out = any("100 of 100 boxes are left out" in note for note in proposal.notes)
    assert left_out == (kind in {"crowd", "no area", "unknown size"})


def test_sizes_and_maps_must_belong() -> None:
    dataset = dataset_of(mixed(60))
    with pytest.raises(ContractError, match=r"sizes_hw must be \[15, 2\] like the pictures, got \[14, 2\]"):
        propose_anchors(dataset, np.full((14, 2), 300, np.int32), SPEC, feature_sizes_hw=MAPS, size_hw=SIZE_HW)
    with pytest.raises(ContractError, match="6 anchor levels but 5 feature maps"):
        propose(dataset, feature_sizes_hw=MAPS[:5])


def test_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multibox.doctor.anchors.MOST_OBJECTS", 200)
    monkeypatch.setattr("multibox.doctor.anchor_search.MOST_SEARCHED", 60)
    proposal = propose(dataset_of(anywhere(np.tile([170.0, 32.0], (1000, 1)))))
    assert proposal.before.objects == 200
    assert "200 of 1000 objects were taken, evenly spread" in proposal.notes
    assert proposal.after.share > 0.9


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("size_hw", [SIZE_HW, (200, 300)])
def test_the_fit_against_one_object_and_one_box_at_a_time(size_hw: tuple[int, int]) -> None:
    spec, maps = tf_anchors(levels=3), ((13, 19), (7, 10), (1, 1))
    boxes = mixed(60)
    fit = propose(dataset_of(boxes), spec, feature_sizes_hw=maps, size_hw=size_hw).before
    anchors = spec.generate(maps, size_hw).astype(np.float64).tolist()
    ends = np.cumsum([rows * columns * count for (rows, columns), count in zip(maps, spec.boxes_per_cell, strict=True)])
    best, levels, matches = [], [], 0
    for x1, y1, x2, y2 in boxes / 300.0:
        ious = []
        for cx, cy, w, h in anchors:
            wide = max(0.0, min(x2, cx + w / 2) - max(x1, cx - w / 2))
            high = max(0.0, min(y2, cy + h / 2) - max(y1, cy - h / 2))
            ious.append(wide * high / ((x2 - x1) * (y2 - y1) + w * h - wide * high))
        best.append(max(ious))
        levels.append(int(np.searchsorted(ends, int(np.argmax(ious)), side="right")))
        matches += sum(iou >= 0.5 for iou in ious)
    assert fit.objects == 60
    assert fit.matched == sum(iou >= 0.5 for iou in best)
    assert fit.mean_iou == pytest.approx(np.mean(best))
    assert fit.boxes_per_object == pytest.approx(matches / 60)
    assert [row[1] for row in fit.by_level] == [levels.count(level) for level in range(3)]
    for rows in (fit.by_level, fit.by_class):
        assert sum(row[1] for row in rows) == 60
        assert sum(row[2] for row in rows) == 60 - fit.matched


def test_objects_below_a_cell_of_the_finest_map_are_said() -> None:
    proposal = propose(dataset_of(anywhere(np.tile([9.0, 9.0], (400, 1)))))
    assert any("400 objects (100.0 %) are smaller than a cell of the finest map" in note for note in proposal.notes)


def test_scales_stay_between_those_of_the_neighbours() -> None:
    proposal = propose(dataset_of(anywhere(np.tile([170.0, 32.0], (400, 1)))))
    for (low, high), level in zip(_bands(SPEC), proposal.spec.levels, strict=True):
        assert all(low * 0.999 <= math.sqrt(w * h) <= high * 1.001 for w, h in level)
    assert _bands(AnchorSpec(levels=(((0.1, 0.1),),))) == [(0.0, math.inf)]


# ------------------------------------------------------------------------------------------------ files


def test_round_trip(tmp_path: Path) -> None:
    spec = propose(dataset_of(mixed(300))).spec
    assert spec != SPEC
    for each in (spec, replace(spec, clip="xyxy", steps=(8.0,) * 6, nominal_size_hw=(300, 300))):
        save_anchor_spec(tmp_path / "boxes.json", each)
        assert load_anchor_spec(tmp_path / "boxes.json") == each
    with pytest.raises(DataError, match=r"cannot be written \(No such file"):
        save_anchor_spec(tmp_path / "none" / "boxes.json", spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "Expecting property name"),
        ("\udcff", "codec can't decode"),
        ("[1]", "keys .* are missing"),
        ("{}", "'levels'.* missing or unknown"),
        ({"clips": "none"}, "'clips' are missing or unknown"),
        ({"levels": [[[0.1, -0.1]]]}, "must be positive"),
        ({"levels": [[[0.1, "wide"]]]}, "could not convert"),
        ({"levels": 3}, "not iterable"),
        ({"levels": [[[0.1, 1e999]]]}, "must be positive"),
        ({"steps": [8.0]}, "6 anchor levels but 1 steps"),
        ({"reference": "width"}, "reference must be one of"),
        ({"nominal_size_hw": [300]}, "out of range"),
    ],
)
def test_damaged_files(tmp_path: Path, change: str | dict[str, object], message: str) -> None:
    file = tmp_path / "boxes.json"
    text = change if isinstance(change, str) else json.dumps({**SPEC.to_dict(), **change})
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=f"holds no default boxes, or damaged ones .*{message}.*write one with"):
        load_anchor_spec(file)


@pytest.mark.parametrize("name", ["boxes.json", "."])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*check the path"):
        load_anchor_spec(tmp_path / name)


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.parametrize(("name", "split", "least"), [("bccd", "trainval", 0.07), ("voc_sample", "train", 0.02)])
def test_real_sets(data_folder: Path, name: str, split: str, least: float) -> None:
    dataset = read_dataset(data_folder / name, split=split, check_pictures=False)
    proposal = propose_anchors(dataset, check_sizes(dataset, Findings()), SPEC, feature_sizes_hw=MAPS, size_hw=SIZE_HW)
    assert proposal.changed
    assert proposal.held_out_after.score > proposal.held_out_before.score + least
    assert proposal.held_out_after.matched > proposal.held_out_before.matched
