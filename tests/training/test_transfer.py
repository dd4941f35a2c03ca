"""What a run starts from: what is carried over from another model, and that the table says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

import toy_cascades  # noqa: F401 - registers its builders

from multibox.catalogue import CATALOGUE
from multibox.errors import ContractError, ModelFileError, OptionError
from multibox.models import DetectionNetwork, create_model
from multibox.spec.anchors import AnchorSpec
from multibox.spec.classes import ClassMap
from multibox.training.transfer import Start, start_from
from multibox.weights import load_detector, make_card, save_detector

OLD = ClassMap(("cat", "tv", "couch", "dog"), (5, 7, 9, 11))
# Softmax, sigmoid, and cascades: two class heads, or one with a gate that keeps its own.
BUILDERS = {
    "tinyssd256": [64, 96],
    "ssdlite300_mobilenetv2": [96, 96],
    "toy_cascade": [64, 64],
    "toy_gated_cascade": [64, 64],
}


@pytest.fixture(scope="module", params=BUILDERS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four classes whose every number is its own."""
    torch.manual_seed(7)
    detector = create_model(request.param, num_classes=4, size_hw=BUILDERS[request.param])
    for value in detector.state_dict().values():
        if value.dtype.is_floating_point:
            value.add_(0.1 * torch.rand_like(value))
    path = tmp_path_factory.mktemp("source") / f"{request.param}.safetensors"
    save_detector(path, detector, make_card(detector, OLD, name="four classes", licence="MIT"))
    return path


def outputs(detector: DetectionNetwork) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(2, 3, *detector.spec.preprocess.size_hw, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        stage = detector.eval()(images)[-1]
    return stage.offsets, stage.logits


def accounted(start: Start) -> tuple[int, int]:
    rows = [row for row in start.table if not row.fate.startswith("left behind")]
    heads = {row.part: row.tensors for row in rows if row.part.endswith("rows of the class head")}
    whole = sum(row.tensors for row in rows if row.part not in heads) + max(heads.values(), default=0)
    return whole, sum(row.values for row in rows)


@pytest.mark.slow
def test_rows_of_the_class_head_are_carried_by_name_and_alias(source: Path) -> None:
    new = ClassMap(("Sofa", "horse", "dog", "television"))
    start = start_from(str(source), new)
    assert start.carried == ("Sofa", "dog", "television")
    old, _ = load_detector(source)
    old_offsets, old_logits = outputs(old)
    offsets, logits = outputs(start.detector)
    torch.testing.assert_close(offsets, old_offsets)
    shift = int(old.spec.postprocess.activation == "softmax")
    assert logits.shape[-1] == 4 + shift
    if shift:
        torch.testing.assert_close(logits[..., 0], old_logits[..., 0])
    for mine, theirs in {0: 2, 2: 3, 3: 1}.items():
        torch.testing.assert_close(logits[..., mine + shift], old_logits[..., theirs + shift])
    for theirs in range(4):
        assert not torch.allclose(logits[..., 1 + shift], old_logits[..., theirs + shift], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("bolt",), ("dog",), ("dog", "bolt", "cat", "nut", "couch", "tv"), OLD.names[::-1]])
def test_any_class_list_can_follow(source: Path, names: tuple[str, ...]) -> None:
    start = start_from(str(source), ClassMap(names))
    old, _ = load_detector(source)
    shift = int(old.spec.postprocess.activation == "softmax")
    _, old_logits = outputs(old)
    _, logits = outputs(start.detector)
    assert logits.shape[-1] == len(names) + shift
    for name in set(names) & set(OLD.names):
        mine, theirs = names.index(name) + shift, OLD.index(name) + shift
        torch.testing.assert_close(logits[..., mine], old_logits[..., theirs])
    assert start.carried == tuple(name for name in names if name in OLD.names)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("bolt",), ("dog", "Sofa", "nut"), OLD.names])
def test_the_table_accounts_for_every_tensor(source: Path, names: tuple[str, ...]) -> None:
    start = start_from(str(source), ClassMap(names))
    parameters = list(start.detector.parameters())
    assert accounted(start) == (len(parameters), sum(p.numel() for p in parameters))
    old, _ = load_detector(source)
    carried = set(OLD.names) if names == OLD.names else {"dog", "couch"} if "dog" in names else set()
    gone = [row for row in start.table if row.fate.startswith("left behind")]
    each = (sum(p.numel() for p in old.parameters()) - sum(p.numel() for p in parameters)) / (4 - len(names) or 1)
    if len(carried) < 4:
        assert gone[0].part == f"{4 - len(carried)} rows of the class head"
        assert len(names) == 4 or gone[0].values == (4 - len(carried)) * each
    else:
        assert not gone


@pytest.mark.slow
def test_the_table_names_classes(source: Path) -> None:
    fates = [row.fate for row in start_from(str(source), ClassMap(("dog", "nut", "bolt"))).table]
    assert "carried by class name: dog" in fates
    assert "initialised: nut, bolt" in fates
    assert "left behind: classes that the data has not" in fates


@pytest.mark.slow
def test_the_same_classes_carry_everything(source: Path) -> None:
    start = start_from(str(source), ClassMap(OLD.names, (0, 1, 2, 3)))
    old, card = load_detector(source)
    for mine, theirs in zip(outputs(start.detector), outputs(old), strict=True):
        assert torch.equal(mine, theirs)
    assert {row.fate for row in start.table} == {"loaded"}
    assert start.carried == OLD.names
    assert (start.source, start.licence) == ("four classes", "MIT")
    assert start.detector.spec == dataclasses.replace(old.spec)
    assert start.detector.builder == card.builder


@pytest.mark.slow
def test_everything_else_is_loaded_bit_for_bit(source: Path) -> None:
    start = start_from(str(source), ClassMap(("nut",)))
    old, _ = load_detector(source)
    mine, theirs = start.detector.state_dict(), old.state_dict()
    other = {key for key in theirs if mine[key].shape != theirs[key].shape}
    assert all(".logits." in key for key in other)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs if key not in other)


def test_what_the_model_file_says_has_the_last_word(tmp_path: Path) -> None:
    detector = create_model("tinyssd256", num_classes=4, size_hw=[64, 64])
    levels = tuple(tuple((w * 1.5, h) for w, h in level) for level in detector.spec.anchors.levels)
    detector.spec = dataclasses.replace(
        detector.spec,
        anchors=dataclasses.replace(detector.spec.anchors, levels=levels),
        postprocess=dataclasses.replace(detector.spec.postprocess, nms_iou=0.33),
        variances=(0.2, 0.2, 0.3, 0.3),
    )
    path = tmp_path / "own.safetensors"
    save_detector(path, detector, make_card(detector, OLD, name="own"))
    spec = start_from(str(path), ClassMap(("cat", "nut")), size_hw=(96, 64)).detector.spec
    assert spec.anchors.levels == levels
    assert spec.postprocess.nms_iou == 0.33
    assert spec.variances == (0.2, 0.2, 0.3, 0.3)
    assert spec.preprocess.size_hw == (96, 64)
    assert spec.num_classes == 2


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 20, 90])
def test_the_number_of_classes_changes_no_default_box(classes: int) -> None:
    names = ClassMap(tuple(f"class {i}" for i in range(classes)))
    for builder in BUILDERS:
        made = start_from(builder, names).detector
        assert made.spec.anchors == create_model(builder).spec.anchors
        assert made.spec.num_classes == classes
    shipped = start_from("ssdlite300-coco", names, size_hw=(96, 96)).detector
    assert shipped.spec.anchors == load_detector(CATALOGUE["ssdlite300-coco"].path(".safetensors"))[0].spec.anchors


@pytest.mark.slow
def test_the_shipped_model_knows_its_classes_under_other_names() -> None:
    start = start_from("ssdlite300-coco", ClassMap(("motorbike", "bolt", "Aeroplane")), size_hw=(96, 96))
    assert start.carried == ("motorbike", "Aeroplane")
    assert start.licence == "Apache-2.0"


def test_names_that_could_be_meant_twice_are_not_carried(source: Path) -> None:
    start = start_from(str(source), ClassMap(("Sofa", "sofa", "dog")))
    assert start.carried == ("dog",)
    assert "initialised: Sofa, sofa" in [row.fate for row in start.table]


def test_random_weights() -> None:
    start = start_from("tinyssd256", OLD, size_hw=(64, 96))
    assert {row.fate for row in start.table} == {"initialised"}
    assert accounted(start)[1] == sum(p.numel() for p in start.detector.parameters())
    assert (start.carried, start.licence) == ((), "")
    assert start.detector.spec.num_classes == 4
    assert start.detector.spec.preprocess.size_hw == (64, 96)


def test_default_boxes_can_be_replaced() -> None:
    spec = create_model("tinyssd256").spec.anchors
    levels = tuple(tuple((w / 2, h / 2) for w, h in level) for level in spec.levels)
    halved = dataclasses.replace(spec, levels=levels)
    start = start_from("tinyssd256", OLD, size_hw=(64, 64), anchors=halved)
    whole = create_model("tinyssd256", size_hw=[64, 64]).anchors_cxcywh()
    torch.testing.assert_close(start.detector.anchors_cxcywh()[:, 2:] * 2, whole[:, 2:])


@pytest.mark.parametrize("change", [lambda levels: levels[:-1], lambda levels: (*levels[:-1], levels[-1][:-1])])
def test_default_boxes_of_another_count_are_refused(change) -> None:  # type: ignore[no-untyped-def]
    spec = create_model("tinyssd256").spec.anchors
    fewer = AnchorSpec(change(spec.levels), reference=spec.reference)
    with pytest.raises(OptionError, match=r"default boxes per cell .* for heads with .*; fit them to this model"):
        start_from("tinyssd256", OLD, anchors=fewer)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("tinysd256", ModelFileError, "unknown model; did you mean 'tinyssd256'"),
        ("ssdlite300_coco", ModelFileError, "did you mean 'ssdlite300-coco'"),
        ("absent.safetensors", ModelFileError, "no such model file"),
        ("model.pt", ModelFileError, "pickled"),
        ("model.onnx", ModelFileError, "a .safetensors file is needed"),
        ("", ModelFileError, "is an empty name"),
    ],
)
def test_unknown_models_are_refused(
    model: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.pt", "model.onnx"):
        Path(name).touch()
    with pytest.raises(error, match=message):
        start_from(model, OLD)


def test_an_input_that_is_too_small_is_refused() -> None:
    with pytest.raises(ContractError, match="too small for this network"):
        start_from("tinyssd256", OLD, size_hw=(16, 16)).detector.anchors_cxcywh()
