"""The pyramid against plain loops over its layers, and the cascades on it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from torch.nn import functional as F

from multibox.core.codec import decode, fold
from multibox.errors import OptionError
from multibox.models import create_model
from multibox.models.folded import FoldedNetwork
from multibox.models.inspect import summarise
from multibox.models.pyramid import PLAIN, SEPARABLE, Pyramid


@pytest.fixture
def maps() -> list[torch.Tensor]:
    """Sizes that halve with rounding up, as those of SAME padding do."""
    torch.manual_seed(0)
    return [torch.randn(2, channels, *size) for channels, size in ((3, (19, 14)), (5, (10, 7)), (4, (5, 4)))]


@pytest.mark.parametrize(("layers", "upsampled"), [(SEPARABLE, True), (PLAIN, False)])
def test_rows_are_what_plain_loops_give(maps: list[torch.Tensor], layers: object, upsampled: bool) -> None:
    neck = Pyramid((3, 5, 4), ("a", "b", "c"), width=6, layers=layers, stages=3).eval()
    with torch.no_grad():
        stages = neck(maps)
        top_down, bottom_up = neck.top_down, neck.bottom_up
        act = neck.top[1]
        coarse = neck.top[2](act(neck.top[0](maps[2])))
        if upsampled:
            wider = F.interpolate(coarse, scale_factor=2)
        else:
            wider = F.conv_transpose2d(coarse, top_down.steps[0].weight, top_down.steps[0].bias, stride=2)
        middle = top_down.smooth[0](act(top_down.laterals[0](maps[1]) + wider[:, :, :10, :7]))
        wider = top_down.steps[1](middle)[:, :, :19, :14]
        fine = top_down.smooth[1](act(top_down.laterals[1](maps[0]) + wider))
        up_middle = bottom_up.smooth[0](act(bottom_up.laterals[0](middle) + bottom_up.steps[0](fine)))
        up_coarse = bottom_up.smooth[1](act(bottom_up.laterals[1](coarse) + bottom_up.steps[1](up_middle)))
    for row, expected in zip(stages, (maps, [fine, middle, coarse], [fine, up_middle, up_coarse]), strict=True):
        assert len(row) == 3
        for found, wanted in zip(row, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert neck.channels == ((3, 5, 4), (6, 6, 6), (6, 6, 6))
    assert neck.level_names == ("bottom_up_a", "bottom_up_b", "bottom_up_c")


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_pyramid_of_fewer_stages(stages: int) -> None:
    network = create_model("bpn300_mobilenetv2", num_classes=2, size_hw=[96, 128], stages=stages).eval()
    anchors, images = network.anchors_cxcywh(), torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        raw = network(images)
        boxes = anchors
        for stage in raw:
            boxes = decode(stage.offsets, boxes)
        folded = fold(raw, anchors)
    assert len(raw) == stages == len(network.heads)
    torch.testing.assert_close(decode(folded.offsets, anchors), boxes, rtol=1e-4, atol=1e-5)
    assert network.spec.mean_scores
    with torch.no_grad():
        found = FoldedNetwork(network).eval()(images)
    torch.testing.assert_close(found.logits, sum(stage.logits for stage in raw) / stages)
    torch.testing.assert_close(found.offsets, folded.offsets)
    assert [stage.matching.positive_threshold for stage in network.spec.stages] == [0.5, 0.6, 0.7][:stages]
    assert [level["stride"] for level in summarise(network)["levels"]] == [8, 16, 32, 64]


@pytest.mark.parametrize("stages", [0, 4])
def test_a_pyramid_has_one_to_three_stages(stages: int) -> None:
    with pytest.raises(OptionError, match="has 1 to 3"):
        create_model("bpn300_mobilenetv2", stages=stages)
    with pytest.raises(OptionError, match="one overlap for each of the 3 stages"):
        create_model("bpn300_mobilenetv2", ious=[0.5])


def test_refinedet_has_the_published_layers() -> None:
    """Released configuration: fc7 of stride 32 with fc6 of dilation 3, three boxes a cell, sides of four strides."""
    network = create_model("refinedet320_vgg16")
    fc6, pool5 = network.features.to_fc7[1].fc6, network.features.to_fc7[1].pool5
    assert (fc6.dilation, fc6.padding, pool5.kernel_size, pool5.stride) == ((3, 3), (3, 3), 2, 2)
    norms = network.features.conv4_3_norm, network.features.conv5_3_norm
    assert [norm.weight.mean().item() for norm in norms] == [10.0, 8.0]
    levels = summarise(network)["levels"]
    assert [(level["size_hw"], level["stride"], level["boxes_per_cell"]) for level in levels] == [
        ([40, 40], 8, 3),
        ([20, 20], 16, 3),
        ([10, 10], 32, 3),
        ([5, 5], 64, 3),
    ]
    wide = network.anchors_cxcywh()[:3] * 320
    torch.testing.assert_close(wide[0], torch.tensor([4.0, 4.0, 32.0, 32.0]))
    assert [round(float(w / h), 4) for _, _, w, h in wide] == [1.0, 2.0, 0.5]
    assert network.spec.gates == (0.01,)
    assert not network.spec.mean_scores
    assert network.spec.stage_outputs == (2, 21)
