"""int8 graphs: what is quantised and what is not, how near the outputs stay, and which layers cost most."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the train extra is not installed")
onnx = pytest.importorskip("onnx", reason="the export extra is not installed")

from onnx import numpy_helper
from onnxscript import ir

from multibox.export.int8 import least_loss, noise_shares, snr_db
from multibox.export.int8_onnx import OnnxQuantizer, last_convolutions
from multibox.export.layout import Layout
from multibox.export.verify.samples import drawn_pictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(exported: Any) -> OnnxQuantizer:
    made = exported("tinyssd256", (96, 64))
    return OnnxQuantizer(made.network, made.card, drawn_pictures())


def last_of(network: Any) -> list[str]:
    return last_convolutions(ir.from_proto(network).graph)[0]


def read_by(model: Any, name: str) -> list[Any]:
    return [node for node in model.graph.node if name in node.input]


def test_heads_stay_float_and_all_else_is_int8(tiny: OnnxQuantizer) -> None:
    network, quantizer = tiny.network, tiny
    model = quantizer.quantised()
    onnx.checker.check_model(model, full_check=True)
    last = last_of(network)
    assert len(last) == 10  # two branches on each of five levels
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        if node.name in last:
            assert weights[node.input[1]].dtype == np.float32
        else:
            stored = makers[node.input[1]]
            assert stored.op_type == "DequantizeLinear"
            assert weights[stored.input[0]].dtype == np.int8
            assert weights[stored.input[1]].shape == (weights[stored.input[0]].shape[0],)  # a scale for each channel
            assert not weights[stored.input[2]].any()
    counts = Counter(node.op_type for node in model.graph.node)
    assert "Relu" not in counts  # merged into the range of what follows


def test_outputs_stay_near(tiny: OnnxQuantizer) -> None:
    network, inputs, quantizer = tiny.network, tiny.inputs, tiny
    for ours, theirs in zip(quantizer.raw(network, inputs), quantizer.raw(quantizer.quantised(), inputs), strict=True):
        assert snr_db(ours, theirs) > 20


def test_layers_given_back_are_float_with_their_activations(tiny: OnnxQuantizer) -> None:
    network, inputs, quantizer = tiny.network, tiny.inputs, tiny
    everything = quantizer.quantised(keep_float=quantizer.layers)
    convolutions = [node for node in everything.graph.node if node.op_type == "Conv"]
    names = {t.name: numpy_helper.to_array(t).dtype for t in everything.graph.initializer}
    assert all(names[node.input[1]] == np.float32 for node in convolutions)
    first = quantizer.layers[0]
    one = quantizer.quantised(keep_float=[first])
    node = next(n for n in one.graph.node if n.name == first)
    assert [reader.op_type for reader in read_by(one, node.output[0])] == ["Relu"]
    assert snr_db(quantizer.raw(network, inputs)[1], quantizer.raw(one, inputs)[1]) > 20


def test_sensitivity_finds_the_layer_that_was_made_sensitive(tiny: OnnxQuantizer) -> None:
    quantizer = tiny
    victim = quantizer.layers[4]
    network = onnx.ModelProto()
    network.CopyFrom(quantizer.network)
    weights = next(
        t
        for t in network.graph.initializer
        if t.name == next(n for n in network.graph.node if n.name == victim).input[1]
    )
    values = numpy_helper.to_array(weights).copy()
    values[:, 0, 0, 0] *= 100  # one weight of each channel makes all others a step or none
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    ranking = OnnxQuantizer(network, quantizer.card, quantizer.pictures).sensitivity(1)
    assert ranking[0].node == victim
    assert ranking[0].layer == weights.name.removesuffix(".weight")
    assert [row.snr_db for row in ranking] == sorted(row.snr_db for row in ranking)
    shares = noise_shares(ranking)
    assert shares[0] == max(shares)
    assert sum(shares) == pytest.approx(1)


def test_equal_input_gives_equal_bytes(tiny: OnnxQuantizer) -> None:
    network, quantizer = tiny.network, tiny
    again = OnnxQuantizer(network, quantizer.card, quantizer.pictures).quantised()
    assert again.SerializeToString(deterministic=True) == quantizer.quantised().SerializeToString(deterministic=True)


def test_ranges_are_drawn_in_where_that_loses_less() -> None:
    random = np.random.default_rng(0)
    even = random.uniform(-1, 1, 20_000).astype(np.float32)
    low, high = least_loss(even, -1.0, 1.0)
    assert (low, high) == (-1.0, 1.0)
    with_outlier = np.append(random.normal(0, 0.01, 200_000), 1.0).astype(np.float32)
    assert least_loss(with_outlier, 0.0, 1.0)[1] < 1
    assert least_loss(np.zeros(5, np.float32), 0.0, 0.0) == (0.0, 0.0)


# ------------------------------------------------------------------------------------------------ pointwise heads


@pytest.fixture(scope="module")
def pointwise(exported: Any) -> OnnxQuantizer:
    made = exported("ssdlite300_mobilenetv2", (96, 64))
    return OnnxQuantizer(made.network, made.card, drawn_pictures()[:3])


def test_pointwise_heads_multiply_int8_and_give_float32(pointwise: OnnxQuantizer) -> None:
    network, inputs, quantizer = pointwise.network, pointwise.inputs, pointwise
    assert quantizer.always_float == []
    last = last_of(network)
    assert len(last) == 12
    model = quantizer.quantised()
    onnx.checker.check_model(model, full_check=True)
    assert not [node for node in model.graph.node if node.name in last]
    assert Counter(node.op_type for node in model.graph.node)["Gemm"] == len(last)
    float_heads = quantizer.quantised(keep_float=last)
    # A network with random weights loses much to 8 bits anywhere; the heads must not add to that.
    for ours, before, theirs in zip(*(quantizer.raw(m, inputs) for m in (network, float_heads, model)), strict=True):
        assert ours.shape == theirs.shape
        assert snr_db(ours, theirs) > snr_db(ours, before) - 1
        assert snr_db(before, theirs) > 20


def test_a_pointwise_head_is_the_convolution_with_rounded_weights_and_bias(pointwise: OnnxQuantizer) -> None:
    """Apart from 8-bit weights and a bias in units of the product, nothing is rounded."""
    network, inputs, quantizer = pointwise.network, pointwise.inputs, pointwise
    last = last_of(network)
    plain = quantizer.quantised(keep_float=last)
    tensors = {tensor.name: tensor for tensor in plain.graph.initializer}
    for node in plain.graph.node:
        if node.name in last:
            weights = tensors[node.input[1]]
            values = numpy_helper.to_array(weights)
            rounded = np.empty_like(values)
            for channel, row in enumerate(values):
                step = np.abs(row).max() / 64
                rounded[channel] = [[[round(float(value / step)) * step]] for value in row[:, 0, 0]]
            weights.CopyFrom(numpy_helper.from_array(rounded, weights.name))
    product = quantizer.quantised()
    units = [numpy_helper.to_array(t) for t in product.graph.initializer if t.name.endswith(".bias.step")]
    half = max(float(unit.max()) for unit in units) / 2
    for expected, given in zip(quantizer.raw(plain, inputs), quantizer.raw(product, inputs), strict=True):
        np.testing.assert_allclose(given, expected, rtol=0, atol=half + 1e-4)


def test_pictures_of_a_batch_do_not_mix(pointwise: OnnxQuantizer) -> None:
    import onnxruntime

    inputs, quantizer = pointwise.inputs, pointwise
    runner = onnxruntime.InferenceSession(quantizer.quantised().SerializeToString())
    together = runner.run(["offsets", "logits"], {"images": np.stack(inputs)})
    for row, image in enumerate(inputs):
        for all_of_them, one in zip(together, runner.run(["offsets", "logits"], {"images": image[None]}), strict=True):
            np.testing.assert_allclose(all_of_them[row], one[0], rtol=0, atol=1e-4)


def test_any_session_gives_the_same_numbers(tiny: OnnxQuantizer, pointwise: OnnxQuantizer) -> None:
    """Also on x86 processors without VNNI, in a session that was told nothing: products are added in 16 bits there."""
    import onnxruntime

    for quantizer in (tiny, pointwise):
        stored = [numpy_helper.to_array(tensor) for tensor in quantizer.quantised().graph.initializer]
        weights = [tensor.astype(int) for tensor in stored if tensor.dtype == np.int8]
        assert len(weights) > 10
        assert max(2 * 255 * np.abs(tensor).max() for tensor in weights if tensor.size) < 1 << 15
    found = []
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):  # 8-bit products, and the same in float32
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(tiny.quantised().SerializeToString(), options)
        runs = [session.run(["offsets", "logits"], {"images": image[None]}) for image in tiny.inputs]
        found.append([np.concatenate(part) for part in zip(*runs, strict=True)])
    for in_int8, in_float in zip(*found, strict=True):
        assert snr_db(in_float, in_int8) > 38  # ties are rounded otherwise; saturated sums leave 28


def test_a_head_whose_input_is_float_stays_float(pointwise: OnnxQuantizer) -> None:
    network, inputs, quantizer = pointwise.network, pointwise.inputs, pointwise
    name = last_of(network)[0]
    conv = next(node for node in network.graph.node if node.name == name)
    clip = next(node for node in network.graph.node if conv.input[0] in node.output)
    before = next(node for node in network.graph.node if clip.input[0] in node.output)
    model = quantizer.quantised(keep_float=[before.name])
    assert [node.op_type for node in model.graph.node if node.name == name] == ["Conv"]
    for keep_float, in_float in (([before.name], [before.name, name]), ([name], [name]), ([], [])):
        assert quantizer.compose(Layout(), keep_float=keep_float)[1] == in_float
    assert snr_db(quantizer.raw(network, inputs)[1], quantizer.raw(model, inputs)[1]) > 15
