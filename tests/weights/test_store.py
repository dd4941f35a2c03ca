"""The safetensors store: round trips, equal bytes, and every way a file can be wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from multibox.catalogue import CATALOGUE
from multibox.errors import ContractError, ModelFileError
from multibox.inference import Detector
from multibox.models import DetectionNetwork, create_model
from multibox.spec.card import METADATA_KEY, read_safetensors_card
from multibox.spec.classes import ClassMap
from multibox.weights import load_detector, make_card, save_detector
from multibox.weights.store import LARGE_KERNEL

CLASSES = ClassMap(("bolt", "nut, large", "Schlüssel"), (7, 3, 90))


@pytest.fixture
def detector() -> DetectionNetwork:
    torch.manual_seed(0)
    return create_model("tinyssd256", num_classes=3, size_hw=[96, 128]).eval()


def header_of(path: Path) -> dict:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def rewrite_header(path: Path, header: dict) -> None:
    content = path.read_bytes()
    old = struct.unpack("<Q", content[:8])[0]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + old :])


def test_round_trip_keeps_weights_and_card(detector: DetectionNetwork, tmp_path: Path) -> None:
    card = make_card(detector, CLASSES, name="parts", licence="MIT", metrics={"AP50": 0.5}, training={"epochs": 3})
    path = tmp_path / "new" / "parts.safetensors"
    save_detector(path, detector, card)
    assert [p.name for p in path.parent.iterdir()] == ["parts.safetensors"]
    loaded, again = load_detector(path)
    assert again == card == read_safetensors_card(path)
    assert again.class_map == CLASSES
    assert not loaded.training
    for key, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    images = torch.rand(1, 3, 96, 128)
    assert torch.equal(loaded(images)[0].logits, detector(images)[0].logits)


def test_equal_input_gives_equal_bytes(detector: DetectionNetwork, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        save_detector(path, detector, make_card(detector, CLASSES, name="parts"))
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_half_precision_rounds_large_kernels_only(detector: DetectionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    torch.nn.init.normal_(detector.heads[0].logits[0].weight)
    detector.heads[0].logits[0].weight.data = detector.heads[0].logits[0].weight.data.repeat(1, 1, 1, 1)
    save_detector(path, detector, make_card(detector, CLASSES, name="half"), storage="float16")
    loaded, _ = load_detector(path)
    stored = {key: entry["dtype"] for key, entry in header_of(path).items() if key != "__metadata__"}
    for key, value in detector.state_dict().items():
        large = value.numel() >= LARGE_KERNEL
        assert stored[key] == {True: "F16", False: "I64" if value.dtype == torch.int64 else "F32"}[large]
        expected = value.half().float() if large else value
        assert torch.equal(loaded.state_dict()[key], expected)
    with pytest.raises(ContractError, match="storage must be one of"):
        save_detector(path, detector, make_card(detector, CLASSES, name="half"), storage="int4")  # type: ignore[arg-type]


def test_refusals_before_writing(detector: DetectionNetwork, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="2 class names for a network with 3 classes"):
        make_card(detector, ClassMap(("a", "b")), name="parts")
    card = make_card(detector, CLASSES, name="parts")
    with pytest.raises(ContractError, match=r"stored as \.safetensors"):
        save_detector(tmp_path / "parts.pth", detector, card)
    detector.builder = None
    with pytest.raises(ContractError, match="not made by create_model"):
        make_card(detector, CLASSES, name="parts")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("__metadata__"), "without multibox metadata"),
        (lambda h: h["__metadata__"].update({METADATA_KEY: "{"}), "metadata is damaged"),
        (lambda h: h["__metadata__"].update({METADATA_KEY: '{"format": 999}'}), "upgrade multibox"),
    ],
)
def test_damaged_headers(detector: DetectionNetwork, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "parts.safetensors"
    save_detector(path, detector, make_card(detector, CLASSES, name="parts"))
    header = header_of(path)
    change(header)
    rewrite_header(path, header)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_detector(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def card_change(path: Path, **changes: object) -> None:
    header = header_of(path)
    card = json.loads(header["__metadata__"][METADATA_KEY])
    for key, value in changes.items():
        card[key] = value
    header["__metadata__"][METADATA_KEY] = json.dumps(card)
    rewrite_header(path, header)


def test_a_card_of_another_network_is_refused(detector: DetectionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "parts.safetensors"
    save_detector(path, detector, make_card(detector, CLASSES, name="parts"))
    card_change(path, arguments={"num_classes": 4, "size_hw": [96, 128]})
    with pytest.raises(ModelFileError, match=r"do not fit tinyssd256 \(heads\.0\.logits\.0\.weight is \[16, 64"):
        load_detector(path)


def test_a_card_of_other_classes_is_refused(detector: DetectionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "parts.safetensors"
    save_detector(path, detector, make_card(detector, CLASSES, name="parts"))
    card_change(path, class_map={"names": ["a", "b"], "ids": [0, 1]})
    with pytest.raises(ModelFileError, match="metadata name 2 classes"):
        load_detector(path)


def test_the_card_has_the_last_word_on_preprocessing(detector: DetectionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "parts.safetensors"
    save_detector(path, detector, make_card(detector, CLASSES, name="parts"))
    header = header_of(path)
    preprocess = json.loads(header["__metadata__"][METADATA_KEY])["preprocess"]
    card_change(path, preprocess={**preprocess, "mean": [1.0, 2.0, 3.0]})
    loaded, card = load_detector(path)
    assert loaded.spec.preprocess == card.preprocess
    assert loaded.spec.preprocess.mean == (1.0, 2.0, 3.0)


def test_changed_default_boxes_are_noticed(detector: DetectionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "parts.safetensors"
    save_detector(path, detector, make_card(detector, CLASSES, name="parts"))
    card_change(path, anchors_sha256="0" * 64)
    with pytest.raises(ModelFileError, match="default boxes differ"):
        load_detector(path)
    with pytest.raises(ModelFileError, match="default boxes differ"):
        Detector(path)


def test_truncated_tensors(detector: DetectionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "parts.safetensors"
    save_detector(path, detector, make_card(detector, CLASSES, name="parts"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_detector(path)


def test_the_shipped_files_agree_with_each_other() -> None:
    entry = CATALOGUE["ssdlite300-coco"]
    _, card = load_detector(entry.path(".safetensors"))
    in_onnx = Detector("ssdlite300-coco", engine="onnxruntime").card
    assert in_onnx == card
    assert len(card.class_map) == 80
    assert card.licence == entry.licence == "Apache-2.0"
