"""Our SSD300 with torchvision's weights against torchvision itself: the proof that core and model are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from multibox.core.postprocess import postprocess
from multibox.errors import ContractError, ModelFileError
from multibox.pictures.read import read_picture
from multibox.spec.postprocess import postprocess_np
from multibox.spec.suppression import iou_matrix_np
from multibox.weights.foreign.state_dicts import read_state_dict
from multibox.weights.foreign.torchvision import import_ssd300_vgg16

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))


def reference_model(seed: int, outputs: int):
    from torchvision.models.detection import ssd300_vgg16

    torch.manual_seed(seed)
    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=outputs).eval()
    # Unscaled, a random head saturates: many scores are the same float just below 1, and torchvision's order of equal
    # scores is whatever its top-k gives. Halved logits keep all 200 scores apart.
    for branch in model.head.classification_head.module_list:
        torch.nn.init.normal_(branch.weight, std=branch.weight.std().item() / 2)
    return model


@pytest.fixture(scope="module", params=[(0, 21), (1, 91)], ids=str)
def pair(request: pytest.FixtureRequest):
    theirs = reference_model(*request.param)
    ours, classes = import_ssd300_vgg16(theirs.state_dict())
    assert len(classes) == request.param[1] - 1
    return theirs, ours


def their_input(theirs, picture: np.ndarray):
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
    batch, _ = theirs.transform([image])
    return batch.tensors


@pytest.mark.slow
def test_raw_outputs_and_default_boxes(pair) -> None:
    from torchvision.models.detection.image_list import ImageList

    theirs, ours = pair
    images = torch.cat([their_input(theirs, read_picture(path)) for path in EXAMPLES])
    with torch.inference_mode():
        maps = list(theirs.backbone(images).values())
        expected = theirs.head(maps)
        stage = ours(images)[-1]
        boxes_xyxy_px = theirs.anchor_generator(ImageList(images, [(300, 300)]), maps)[0]
    torch.testing.assert_close(stage.offsets, expected["bbox_regression"], rtol=0, atol=1e-5)
    torch.testing.assert_close(stage.logits, expected["cls_logits"], rtol=0, atol=1e-5)
    anchors = ours.anchors_cxcywh()
    assert anchors.shape == (8732, 4)
    unit_xyxy = boxes_xyxy_px / 300
    cxcywh = torch.cat([(unit_xyxy[:, :2] + unit_xyxy[:, 2:]) / 2, unit_xyxy[:, 2:] - unit_xyxy[:, :2]], dim=1)
    torch.testing.assert_close(anchors, cxcywh, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_detections_from_the_same_input(pair, path: Path) -> None:
    """Network, decoding and suppression: every one of the 200 detections, in both implementations of the latter."""
    theirs, ours = pair
    picture = read_picture(path)
    expected = their_detections(theirs, picture)
    with torch.inference_mode():
        raw = ours(their_input(theirs, picture))
    for found in (in_torch(ours, raw), in_numpy(ours, raw)):
        missing, extra = compare(expected, found, picture)
        assert (missing, extra) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_detections_from_the_picture(pair, path: Path) -> None:
    """With our own preprocessing too, which differs from torchvision's by rounding (up to 1e-4 in 0 … 255, by version).

    Random weights give hundreds of nearly equal scores, so such a rounding can decide which of two overlapping boxes
    suppresses the other. Anything else must be equal; a box that is not must have lost to such a rival.
    """
    theirs, ours = pair
    picture = read_picture(path)
    expected = their_detections(theirs, picture)
    tensor, _ = ours.spec.preprocess(picture)
    np.testing.assert_allclose(tensor, their_input(theirs, picture)[0].numpy(), rtol=0, atol=5e-4)
    with torch.inference_mode():
        raw = ours(torch.from_numpy(tensor)[None])
    found = in_torch(ours, raw)
    # How far a rounding of the input goes depends on the processor's convolutions.
    missing, extra = compare(expected, found, picture, score_tolerance=1e-4, box_tolerance=1e-2)
    assert len(missing) == len(extra) <= 5
    for lost in missing:
        rivals = [i for i in extra if found[2][i] + 1 == expected["labels"][lost]]
        overlaps = iou_matrix_np(found[0][rivals], expected["boxes"][lost][None] / picture_wh(picture))
        assert overlaps.max() > 0.45
        assert min(abs(found[1][i] - expected["scores"][lost]) for i in rivals) < 1e-4


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def their_detections(theirs, picture: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        rows = theirs([torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255])[0]
    assert len(rows["scores"]) == 200
    return {key: value.numpy() for key, value in rows.items()}


def in_torch(ours, raw) -> Rows:
    rows = postprocess(raw[0], ours.anchors_cxcywh(), variances=ours.spec.variances, spec=ours.spec.postprocess)[0]
    return rows.unit_xyxy.numpy(), rows.scores.numpy(), rows.labels.numpy()


def in_numpy(ours, raw) -> Rows:
    arrays = (raw[-1].offsets[0].numpy(), raw[-1].logits[0].numpy(), ours.anchors_cxcywh().numpy())
    return postprocess_np(*arrays, variances=ours.spec.variances, spec=ours.spec.postprocess)


def picture_wh(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.array([width, height, width, height], dtype=np.float32)


def compare(
    expected: dict[str, np.ndarray],
    found: Rows,
    picture: np.ndarray,
    *,
    score_tolerance: float = 1e-5,
    box_tolerance: float = 1e-3,
) -> tuple[list[int], list[int]]:
    """Rows of theirs that we lack (same label; score and box in pixels within tolerance), and rows we have besides."""
    unit_xyxy, scores, labels = found
    boxes = unit_xyxy * picture_wh(picture)
    free = dict.fromkeys(range(len(scores)))
    missing = []
    for row, (box, score, label) in enumerate(
        zip(expected["boxes"], expected["scores"], expected["labels"], strict=True)
    ):
        same = (i for i in free if labels[i] + 1 == label and abs(scores[i] - score) <= score_tolerance)
        match = next((i for i in same if np.abs(boxes[i] - box).max() <= box_tolerance), None)
        if match is None:
            missing.append(row)
        else:
            del free[match]
    return missing, list(free)


@pytest.mark.slow
def test_foreign_state_dicts_are_refused_with_the_reason(tmp_path: Path) -> None:
    state = reference_model(0, 3).state_dict()
    with pytest.raises(ContractError, match=r"'backbone\.layer9\.weight' is no parameter"):
        import_ssd300_vgg16({**state, "backbone.layer9.weight": torch.zeros(1)})
    with pytest.raises(ContractError, match="no classification head"):
        import_ssd300_vgg16({k: v for k, v in state.items() if "classification" not in k})
    with pytest.raises(ContractError, match="does not fit"):
        import_ssd300_vgg16({k: v for k, v in state.items() if k != "backbone.extra.1.0.bias"})
    path = tmp_path / "pickled.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(ModelFileError, match=r"pickled\.pth: not a plain file of tensors"):
        read_state_dict(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelFileError, match="does not hold a state dict"):
        read_state_dict(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ModelFileError, match=r"pickled\.pth: not a plain file of tensors"):
        read_state_dict(path)
    torch.save(state, path)
    assert read_state_dict(path).keys() == state.keys()
