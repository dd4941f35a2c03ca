"""Every registered model, at its own size and at others: shapes, gradients, empty truth, learning, export."""

from __future__ import annotations

import copy
from importlib.metadata import EntryPoint

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

import toy_cascades

from multibox.catalogue import CATALOGUE, NETWORKS
from multibox.core.codec import fold
from multibox.core.loss import multibox_loss
from multibox.core.postprocess import postprocess
from multibox.core.structures import Target
from multibox.errors import ContractError, OptionError
from multibox.models import create_model, list_models, register_model, registry
from multibox.models.features import Neck
from multibox.models.heads import MultiboxHead
from multibox.models.inspect import summarise
from multibox.models.network import DetectionNetwork, NetworkSpec, StageSpec
from multibox.models.vgg import PIXEL_SPREAD
from multibox.weights.opening import open_model

DEFAULT_BOXES = {
    "bpn300_mobilenetv2": 5790,
    "bpn320_efficientnet_lite0": 6375,
    "bpn320_vgg16": 6375,
    "bpn512_vgg16": 16320,
    "refinedet320_vgg16": 6375,
    "refinedet512_vgg16": 16320,
    "ssd300_vgg16": 8732,
    "ssd512_vgg16": 24564,
    "ssdlite300_mobilenetv2": 1917,
    "ssd300_resnet34": 8762,
    "ssd300_resnet50": 8762,
    "ssd512_resnet34": 24560,
    "ssd512_resnet50": 24560,
    "ssd_backbone": 2432,
    "ssdlite320_mobilenetv3_large": 2432,
    **{f"ssdlite320_efficientnet_lite{number}": 2034 for number in range(3)},
    "tinyssd256": 5444,
    **dict.fromkeys(toy_cascades.__all__, 2 * (8 * 8 + 4 * 4 + 2 * 2)),
}
SMALL_HW = {"ssd300_vgg16": (275, 300), "ssd512_vgg16": (280, 300)}  # the smallest maps need this much

RATES = {
    **dict.fromkeys(("ssd300_vgg16", "ssd512_vgg16", "bpn320_vgg16", "refinedet320_vgg16"), 1e-4),
    **dict.fromkeys(toy_cascades.__all__, 1e-2),
}
LARGER = (  # the layers of another one at another size, or more of them
    *("ssd512_vgg16", "bpn512_vgg16", "refinedet512_vgg16"),
    *(
        "ssdlite320_efficientnet_lite1",
        "ssdlite320_efficientnet_lite2",
        "ssd300_resnet50",
        "ssd512_resnet34",
        "ssd512_resnet50",
    ),
)


def small_hw(name: str) -> tuple[int, int]:
    return SMALL_HW.get(name, (100, 140))


def two_pictures(size_hw: tuple[int, int]):
    """A bright square on the left of one picture and a dark one on the right of another, with their boxes."""
    height, width = size_hw
    images = torch.zeros(2, 3, height, width)
    images[0, 0, height // 4 : height * 3 // 4, width // 8 : width // 2] = 1.0
    images[1, 1, height // 3 : height * 2 // 3, width // 2 : width * 7 // 8] = -1.0
    boxes = ([width // 8 / width, 0.25, width // 2 / width, 0.75], [0.5, height // 3 / height, 0.875, 2 / 3])
    return images, [Target(torch.tensor([box]), torch.tensor([i])) for i, box in enumerate(boxes)]


def test_the_sweep_covers_the_registry() -> None:
    assert set(list_models()) == set(DEFAULT_BOXES)


@pytest.mark.parametrize("name", DEFAULT_BOXES)
def test_boxes_at_the_nominal_size(name: str) -> None:
    detector = create_model(name)
    assert detector.anchors_cxcywh().shape == (DEFAULT_BOXES[name], 4)
    summary = summarise(detector)
    assert summary["boxes"] == DEFAULT_BOXES[name]
    assert summary["parameters"] == sum(p.numel() for p in detector.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 7])
@pytest.mark.parametrize("name", DEFAULT_BOXES)
def test_any_size_and_class_count(name: str, classes: int) -> None:
    size_hw = small_hw(name)
    detector = create_model(name, num_classes=classes, size_hw=list(size_hw)).eval()
    with torch.inference_mode():
        raw = detector(torch.randn(3, 3, *size_hw))
    boxes = len(detector.anchors_cxcywh())
    assert len(raw) == len(detector.spec.stages)
    for stage, outputs in zip(raw, detector.spec.stage_outputs, strict=True):
        assert stage.offsets.shape == (3, boxes, 4)
        assert stage.logits.shape == (3, boxes, outputs)
    assert detector.spec.outputs_per_box == classes + (detector.spec.postprocess.activation == "softmax")
    maps = detector.feature_sizes_hw()
    assert sum(h * w * n for (h, w), n in zip(maps, detector.spec.anchors.boxes_per_cell, strict=True)) == boxes
    centres = detector.anchors_cxcywh()[:, :2]
    assert (centres > 0).all()
    assert (centres < 1.02).all()  # the original steps, at their own size, put the last centres just outside


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT_BOXES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    size_hw = small_hw(name)
    detector = create_model(name, num_classes=2, size_hw=list(size_hw)).train()
    images, targets = two_pictures(size_hw)
    losses = loss_of(detector, images, targets)
    assert losses.positives > 0
    losses.total.backward()
    without = [key for key, p in detector.named_parameters() if p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    moving = [key for key, p in detector.named_parameters() if p.grad.abs().sum() > 0]
    assert len(moving) > 0.5 * len(list(detector.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT_BOXES)
def test_pictures_without_objects_train_the_background(name: str) -> None:
    torch.manual_seed(0)
    size_hw = small_hw(name)
    detector = create_model(name, num_classes=2, size_hw=list(size_hw)).train()
    images, _ = two_pictures(size_hw)
    nothing = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 2
    losses = loss_of(detector, images, nothing)
    assert losses.positives == 0
    assert losses.localization == 0
    assert losses.classification > 0
    losses.total.backward()
    assert sum(p.grad.abs().sum() for key, p in detector.named_parameters() if "logits" in key) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DEFAULT_BOXES if name not in LARGER])
def test_overfits_two_pictures(name: str) -> None:
    torch.manual_seed(0)
    size_hw = small_hw(name)
    detector = create_model(name, num_classes=2, size_hw=list(size_hw)).train()
    images, targets = two_pictures(size_hw)
    if "vgg" in name:
        images *= PIXEL_SPREAD  # grey levels, which its start expects
        # Nine tenths of a VGG's arithmetic are its first ten layers; here they stay as they are and run once, which
        # makes a step ten times faster. That gradients reach them is tested above.
        detector.anchors_cxcywh()  # measured on the whole network, before it is shortened
        with torch.no_grad():
            detector.features.to_conv4_3 = Remembered(detector.features.to_conv4_3(images))
    optimiser = torch.optim.Adam(detector.parameters(), lr=RATES.get(name, 1e-3))
    for step in range(1, 151):
        losses = loss_of(detector, images, targets)
        optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        optimiser.step()
        if step % 10 == 0 and both_found(detector, images, targets):
            break
    assert both_found(detector, images, targets)


def both_found(detector, images, targets) -> bool:
    """Whether the best detection of each picture is its object, with its class and a probability above a half."""
    # Batch statistics of two pictures are what the network learnt with, so it is read in training mode.
    with torch.no_grad():
        found = detections(detector, images)
    return all(
        len(picture.labels)
        and picture.labels[0] == label
        and picture.scores[0] > 0.5
        and (picture.unit_xyxy[0] - target.truth_unit_xyxy[0]).abs().max() <= 0.06
        for picture, target, label in zip(found, targets, (0, 1), strict=True)
    )


class Remembered(torch.nn.Module):
    """Gives one tensor, whatever the input."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.value.clone()  # what follows may work in place


def loss_of(detector, images, targets):
    spec = detector.spec
    size_hw = (images.shape[2], images.shape[3])
    return multibox_loss(
        detector(images),
        detector.anchors_cxcywh(size_hw),
        targets,
        activation=spec.postprocess.activation,
        matching=[stage.matching for stage in spec.stages],
        variances=spec.variances,
    )


def detections(detector, images):
    anchors_cxcywh = detector.anchors_cxcywh((images.shape[2], images.shape[3]))
    return postprocess(
        fold(detector(images), anchors_cxcywh, detector.spec.variances, gates=detector.spec.gates),
        anchors_cxcywh,
        variances=detector.spec.variances,
        spec=detector.spec.postprocess,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT_BOXES)
def test_anchors_are_measured_for_the_size_asked_for(name: str) -> None:
    detector = create_model(name)
    size_hw = small_hw(name)
    other = create_model(name, size_hw=list(size_hw))
    boxes = detector.anchors_cxcywh(size_hw)
    assert boxes.shape == other.anchors_cxcywh().shape
    assert boxes.device == next(detector.parameters()).device
    with torch.inference_mode():
        assert detector.eval()(torch.zeros(1, 3, *size_hw))[0].offsets.shape[1] == len(boxes)


def test_a_picture_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(ContractError, match="too small for this network"):
        create_model("ssd300_vgg16", size_hw=[40, 40]).anchors_cxcywh()


@pytest.mark.slow
def test_the_worked_example() -> None:
    """A 10×10×512 map, 4 boxes a cell, 10 classes and background: 400 boxes, 10 × 10 × 4 × (11 + 4) = 6000 outputs."""
    ratios = [[2], [2, 3], [2], [2, 3], [2], [2]]
    detector = create_model("ssd300_vgg16", num_classes=10, ratios=ratios).eval()
    level = summarise(detector)["levels"][2]
    assert (level["name"], level["size_hw"], level["channels"]) == ("conv8_2", [10, 10], 512)
    assert (level["boxes_per_cell"], level["boxes"], level["outputs"]) == (4, 400, 6000)
    with torch.inference_mode():
        conv8_2 = detector.features(torch.zeros(1, 3, 300, 300))[2]
        offsets, scores = detector.heads[0].offsets[2](conv8_2), detector.heads[0].logits[2](conv8_2)
    assert conv8_2.shape == (1, 512, 10, 10)
    assert offsets.numel() + scores.numel() == 6000
    assert offsets.numel() == 400 * 4


def test_ssd300_summary_by_hand() -> None:
    """Receptive fields and multiply-adds of SSD300 recomputed layer by layer, with plain arithmetic."""
    summary = summarise(create_model("ssd300_vgg16", num_classes=20))
    field, jump, fields, jumps = 1, 1, [], []
    vgg = [(3, 1)] * 2 + [(2, 2)] + [(3, 1)] * 2 + [(2, 2)] + [(3, 1)] * 3 + [(2, 2)] + [(3, 1)] * 3 + ["tap"]
    vgg += [(2, 2)] + [(3, 1)] * 3 + [(3, 1), (13, 1), (1, 1), "tap"]  # pool5, fc6 (3 with dilation 6 spans 13), fc7
    vgg += [(1, 1), (3, 2), "tap", (1, 1), (3, 2), "tap", (1, 1), (3, 1), "tap", (1, 1), (3, 1), "tap"]
    for layer in vgg:
        if layer == "tap":
            fields.append(field)
            jumps.append(jump)
        else:
            kernel, stride = layer
            field += (kernel - 1) * jump
            jump *= stride
    assert [level["receptive_field"] for level in summary["levels"]] == fields
    assert [level["stride"] for level in summary["levels"]] == jumps
    convs = [(3, 64, 3, 300), (64, 64, 3, 300), (64, 128, 3, 150), (128, 128, 3, 150), (128, 256, 3, 75)]
    convs += [(256, 256, 3, 75)] * 2 + [(256, 512, 3, 38)] + [(512, 512, 3, 38)] * 2 + [(512, 512, 3, 19)] * 3
    convs += [(512, 1024, 3, 19), (1024, 1024, 1, 19), (1024, 256, 1, 19), (256, 512, 3, 10), (512, 128, 1, 10)]
    convs += [(128, 256, 3, 5), (256, 128, 1, 5), (128, 256, 3, 3), (256, 128, 1, 3), (128, 256, 3, 1)]
    levels = [(512, 4, 38), (1024, 6, 19), (512, 6, 10), (256, 6, 5), (256, 4, 3), (256, 4, 1)]
    convs += [(channels, boxes * 25, 3, side) for channels, boxes, side in levels]
    assert summary["multiply_adds"] == sum(i * o * k * k * s * s for i, o, k, s in convs)
    assert summary["parameters"] == 26_285_486  # as counted for the other ports of SSD300 with 21 outputs


@pytest.mark.parametrize("size_hw", [(256, 256), (264, 200)])
def test_maps_behind_a_neck_are_those_that_heads_read(size_hw: tuple[int, int]) -> None:
    """Stride and field of upsampled and joined maps, against the pixels that really move a cell in the middle."""
    network = create_model("toy_gated_cascade", size_hw=list(size_hw)).eval()
    network.neck = _Second(network.neck)
    levels = summarise(network)["levels"]
    assert [level["name"] for level in levels] == ["stride_8_mixed", "stride_16_mixed", "stride_32_mixed"]
    assert [level["stride"] for level in levels] == [8, 16, 32]
    images = torch.randn(1, 3, *size_hw, requires_grad=True)
    for level, level_map in zip(levels, network.neck(network.features(images))[0], strict=True):
        row, column = level_map.shape[2] // 2, level_map.shape[3] // 2
        seen = torch.zeros(size_hw, dtype=torch.bool)
        for y in (row - 1, row):  # cells on both sides of a cell of the coarser map
            for x in (column - 1, column):
                (moved,) = torch.autograd.grad(level_map[0, :, y, x].abs().sum(), images, retain_graph=True)
                seen |= moved[0].abs().sum(0) > 0
        rows = int(seen.any(1).nonzero().max() - seen.any(1).nonzero().min()) + 1
        field, stride = level["receptive_field"], level["stride"]
        assert min(field - 64, size_hw[0] - 64) <= rows <= min(field + stride, size_hw[0])


class _Second(Neck):
    """The maps of the second stage of a neck for both stages."""

    def __init__(self, neck: Neck) -> None:
        super().__init__()
        self.neck, self.channels, self.level_names = neck, neck.channels, neck.level_names

    def forward(self, maps):
        return [self.neck(maps)[1]] * 2


def test_fields_of_upsampling_and_transposed_convolutions_by_hand() -> None:
    from multibox.models.inspect import _Tracer

    images = torch.empty(1, 3, 64, 64, device="meta")
    with torch.no_grad(), (tracer := _Tracer(images)):
        down = torch.nn.functional.conv2d(images, torch.empty(4, 3, 3, 3, device="meta"), stride=4, padding=1)
        nearest = torch.nn.functional.interpolate(down, scale_factor=2)
        linear = torch.nn.functional.interpolate(down, scale_factor=2, mode="bilinear")
        transposed = torch.nn.functional.conv_transpose2d(down, torch.empty(4, 5, 4, 4, device="meta"), stride=2)
        pooled = torch.nn.functional.adaptive_avg_pool2d(down, 1)
        gated = down * pooled
    assert tracer.reach(down) == (3, 4)
    assert tracer.reach(nearest) == (3, 2)
    assert tracer.reach(linear) == (3 + 4, 2)
    assert tracer.reach(transposed) == (3 + 4, 2)
    assert tracer.reach(pooled) == (None, None)
    assert tracer.reach(gated) == (None, 4)
    assert tracer.multiply_adds == 16 * 16 * 4 * 27 + 16 * 16 * 4 * 5 * 16


def test_declared_channels_must_be_those_of_the_maps() -> None:
    network = create_model("toy_gated_cascade")
    network.neck.channels = ((8, 8, 8), (8, 8, 9))
    with pytest.raises(ContractError, match=r"maps of \(\(8, 8, 8\), \(8, 8, 9\)\) channels are declared, got"):
        network.feature_sizes_hw()


def test_heads_take_other_branches() -> None:
    def two_layers(inputs: int, outputs: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(inputs, 5, 1), torch.nn.ReLU(), torch.nn.Conv2d(5, outputs, 1))

    head = MultiboxHead((4, 6), (2, 3), 7, branch=two_layers, sigmoid=True)
    offsets, logits = head([torch.zeros(1, 4, 5, 5), torch.zeros(1, 6, 2, 2)])
    assert (offsets.shape, logits.shape) == ((1, 62, 4), (1, 62, 7))
    assert [layer.out_channels for layer in head.class_layers()] == [14, 21]
    assert all(torch.all(layer.bias == layer.bias[0]) for layer in head.class_layers())


def test_an_installed_package_brings_a_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    def borrowed(*, num_classes: int = 2) -> DetectionNetwork:
        return create_model("tinyssd256", num_classes=num_classes)

    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    entry = EntryPoint("borrowed", f"{__name__}:borrowed", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.ENTRY_POINTS else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: borrowed)
    assert "borrowed" in list_models()
    made = create_model("borrowed", num_classes=3)
    assert (made.builder, made.arguments) == ("borrowed", {"num_classes": 3})


@pytest.mark.slow
def test_published_parameter_counts() -> None:
    assert summarise(create_model("ssd512_vgg16", num_classes=20))["parameters"] == 27_188_676
    assert summarise(create_model("ssd300_vgg16", num_classes=90))["parameters"] == 35_641_826


def test_unknown_names_and_arguments() -> None:
    with pytest.raises(OptionError, match="did you mean 'ssd300_vgg16'"):
        create_model("ssd300-vgg16")
    with pytest.raises(OptionError, match="no argument 'num_class'; did you mean 'num_classes'"):
        create_model("tinyssd256", num_class=3)
    with pytest.raises(ContractError, match="at least 1"):
        create_model("tinyssd256", num_classes=0)

    def tinyssd256() -> None: ...

    with pytest.raises(OptionError, match="registered already"):
        register_model(tinyssd256)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StageSpec(num_classes=2), "a stage has the classes of the network"),
        (lambda: StageSpec(gate=0.1), "a gate needs a stage of one class"),
        (lambda: StageSpec(num_classes=1, gate=1.5), "a gate is a probability"),
        (lambda: _with_stages(), "the last stage must have"),
        (lambda: _with_stages(StageSpec(), StageSpec(num_classes=1)), "the last stage must have"),
        (lambda: _with_stages(StageSpec(num_classes=1), StageSpec()), r"heads with \(4, 4\) .* stages with \(2, 4\)"),
        (lambda: _with_stages(StageSpec()), r"heads with \(4, 4\) .* stages with \(4,\)"),
    ],
)
def test_stages_that_fit_no_heads(make, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        make()


def _with_stages(*stages: StageSpec) -> DetectionNetwork:
    like = create_model("toy_cascade")
    spec = NetworkSpec(3, like.spec.anchors, like.spec.preprocess, like.spec.postprocess, stages=stages)
    return DetectionNetwork(like.features, list(like.heads), spec)


def test_gates_are_those_of_all_stages_but_the_last() -> None:
    assert create_model("tinyssd256").spec.gates == ()
    assert create_model("toy_cascade").spec.gates == (None,)
    assert create_model("toy_gated_cascade").spec.gates == (toy_cascades.GATE,)


def test_l2norm_by_hand_and_in_half_precision() -> None:
    from multibox.models.layers import L2Norm

    layer = L2Norm(3, scale=20.0)
    x = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2)
    expected = torch.tensor([[12.0, 0.0, 16.0], [0.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2)
    torch.testing.assert_close(layer(x), expected)
    tiny = torch.full((1, 3, 1, 1), 1e-4).half()  # squares vanish in half precision
    torch.testing.assert_close(layer(tiny), torch.full((1, 3, 1, 1), 20 / 3**0.5).half())


@pytest.mark.parametrize(("pixels", "stride"), [(300, 2), (75, 2), (38, 2), (5, 2), (2, 2), (1, 2), (7, 1), (9, 3)])
def test_same_padding_by_a_plain_loop(pixels: int, stride: int) -> None:
    from multibox.models.layers import SameConv2d

    torch.manual_seed(0)
    conv = SameConv2d(1, 1, 3, stride=stride, bias=False)
    signal = np.random.default_rng(0).normal(size=(pixels, pixels)).astype(np.float32)
    out = conv(torch.from_numpy(signal)[None, None]).detach().numpy()[0, 0]
    outputs = -(-pixels // stride)
    before = max((outputs - 1) * stride + 3 - pixels, 0) // 2
    kernel = conv.weight.detach().numpy()[0, 0]
    for y in range(outputs):
        for x in range(outputs):
            total = 0.0
            for i in range(3):
                for j in range(3):
                    row, column = y * stride + i - before, x * stride + j - before
                    if 0 <= row < pixels and 0 <= column < pixels:
                        total += kernel[i, j] * signal[row, column]
            assert out[y, x] == pytest.approx(total, abs=1e-5)


def test_a_detector_survives_deepcopy_and_moves_its_anchors() -> None:
    detector = create_model("tinyssd256")
    detector.anchors_cxcywh()
    twin = copy.deepcopy(detector).to(torch.float64)
    assert torch.equal(twin.anchors_cxcywh(), detector.anchors_cxcywh())


@pytest.mark.parametrize("name", [*NETWORKS, *CATALOGUE])
def test_the_list_says_how_large_a_network_is(name: str) -> None:
    size = NETWORKS[name] if name in NETWORKS else CATALOGUE[name].size
    network, _ = open_model(name)
    found = summarise(network)
    assert found["size_hw"] == list(size.input_hw)
    assert (found["boxes"], found["parameters"], found["multiply_adds"]) == (
        size.boxes,
        size.parameters,
        size.multiply_adds,
    )


@pytest.mark.parametrize("name", ["ssd300_vgg16", "bpn320_vgg16"])
def test_random_vgg_keeps_its_activations_in_range(name: str) -> None:
    """Without a normalisation, grey levels would come out as large as they go in, and the first loss near 1,000."""
    size_hw = (320, 320)
    detector = create_model(name, num_classes=20, size_hw=list(size_hw))
    images, targets = two_pictures(size_hw)
    with torch.no_grad():
        maps = detector.features(images * PIXEL_SPREAD)
        losses = loss_of(detector, images * PIXEL_SPREAD, targets)
    assert all(0.005 < m.std() < 20 for m in maps)
    assert losses.classification < 40 * len(detector.spec.stages)  # 12.2 for four even guesses a matched box
