"""Small SSDs as `.tflite` files, written operator by operator, in floats or in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZE, COLUMNS = 32, 4  # of the picture; class scores of a box, background's among them
COUNTS = (3, 6)
NAMES = "TFLite_Detection_PostProcess"
Numbers = Any


def same_conv(x: Numbers, kernel: Numbers, bias: Numbers, stride: int, depthwise: bool) -> Numbers:
    """A convolution of [H, W, C] with SAME padding, place by place; kernel [O, h, w, I] or [1, h, w, C]."""
    height, width, _ = x.shape
    k = kernel.shape[1]
    rows, columns = -(-height // stride), -(-width // stride)
    total = [max((n - 1) * stride + k - size, 0) for n, size in ((rows, height), (columns, width))]
    padded = np.pad(x, [(t // 2, t - t // 2) for t in total] + [(0, 0)])
    out = np.zeros((rows, columns, kernel.shape[3] if depthwise else kernel.shape[0]))
    for row in range(rows):
        for column in range(columns):
            window = padded[row * stride : row * stride + k, column * stride : column * stride + k]
            product = window * kernel[0] if depthwise else window[None] * kernel
            out[row, column] = product.sum((0, 1)) if depthwise else product.sum((1, 2, 3))
    return out + bias


class TfliteWriter:
    """Adds tensors and operators. With `bytes_of` (lowest, highest) ranges, tensors are bytes with a scale."""

    def __init__(self, schema: Any, *, quantised: bool) -> None:
        self.schema, self.quantised = schema, quantised
        self.model = schema.ModelT()
        self.model.version, self.model.operatorCodes = 3, []
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.values: list[Numbers] = []

    def tensor(self, shape: Any, value: Numbers = None, *, constant: Any = None, low_high: Any = None) -> int:
        """A tensor of floats, or of bytes where a range is given and the file is quantised."""
        tensor = self.schema.TensorT()
        tensor.shape, tensor.name, tensor.buffer = list(shape), f"t{len(self.values)}", 0
        tensor.type = self.schema.TensorType.FLOAT32
        stored = constant
        if self.quantised and low_high is not None:
            low, high = min(low_high[0], 0.0), max(low_high[1], 0.0)
            scale = np.float32((high - low) / 255)
            zero = round(float(-low / scale))
            self._rule(tensor, [float(scale)], [zero])
            tensor.type = self.schema.TensorType.UINT8
            stored = None if constant is None else np.clip(np.round(constant / scale) + zero, 0, 255).astype(np.uint8)
        elif constant is not None and constant.dtype == np.int32:
            tensor.type = self.schema.TensorType.INT32
        elif constant is not None:
            stored = constant.astype(np.float32)
        return self._add(tensor, stored, constant if value is None else value)

    def _rule(self, tensor: Any, scale: list[float], zero: list[int]) -> None:
        tensor.quantization = self.schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = scale, zero

    def _add(self, tensor: Any, stored: Any, value: Numbers) -> int:
        if stored is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(stored.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        self.values.append(value)
        return len(self.values) - 1

    def operator(
        self, kind: str, inputs: list[int], outputs: list[int], options: Any = None, custom: Any = b""
    ) -> None:
        code, operator = self.schema.OperatorCodeT(), self.schema.OperatorT()
        if custom:
            code.builtinCode, code.customCode = self.schema.BuiltinOperator.CUSTOM, kind
            operator.customOptions = np.frombuffer(bytes(custom), np.uint8)
        else:
            code.builtinCode = getattr(self.schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            operator.builtinOptions = options
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
        self.graph.operators.append(operator)

    def conv(self, taken: int, kernel: Numbers, bias: Numbers, *, stride: int = 1, relu6: bool = True) -> int:
        depthwise = kernel.shape[0] == 1 and kernel.shape[3] == self.values[taken].shape[-1] and kernel.shape[1] == 3
        out = same_conv(self.values[taken], kernel, bias, stride, depthwise)
        out = np.clip(out, 0, 6) if relu6 else out
        span = (float(kernel.min()), float(kernel.max()))
        weights = self.tensor(kernel.shape, constant=kernel, low_high=span)
        if self.quantised:
            sides = [self.graph.tensors[place].quantization.scale[0] for place in (taken, weights)]
            tensor = self.schema.TensorT()
            tensor.shape, tensor.name, tensor.type = list(bias.shape), "bias", self.schema.TensorType.INT32
            tensor.buffer = 0
            self._rule(tensor, [sides[0] * sides[1]], [0])
            added = self._add(tensor, np.round(bias / (sides[0] * sides[1])).astype(np.int32), bias)
        else:
            added = self.tensor(bias.shape, constant=bias)
        low_high = (0, 6) if relu6 else (float(out.min()), float(out.max()))
        made = self.tensor((1, *out.shape), out, low_high=low_high)
        options = self.schema.DepthwiseConv2DOptionsT() if depthwise else self.schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = 0, stride, stride
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = 3 if relu6 else 0
        if depthwise:
            options.depthMultiplier = 1
        self.operator("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [taken, weights, added], [made], options)
        return made

    def write(self, path: Path, inputs: list[int], outputs: list[int]) -> Path:
        import flatbuffers

        self.graph.inputs, self.graph.outputs = inputs, outputs
        self.model.subgraphs = [self.graph]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


def default_boxes(rng: Any) -> Numbers:
    """[A, 4] as (y, x, height, width): maps of 16 and 8 cells a side, 3 and 6 boxes at a cell."""
    found = []
    for cells, count in ((16, COUNTS[0]), (8, COUNTS[1])):
        sides = rng.uniform(0.1, 0.6, (count, 2))
        for row in range(cells):
            for column in range(cells):
                centre = [(row + 0.5) / cells, (column + 0.5) / cells]
                found += [[*centre, *side] for side in sides]
    return np.array(found)


def small_ssd(
    schema: Any, path: Path, rgb: Numbers, *, quantised: bool = False, postprocess: dict[str, Any] | None = None
) -> Path:
    """A file whose network is 3×3 stride 2, depthwise, 1×1 with a shortcut, and a second level."""
    rng = np.random.default_rng(3)
    writer = TfliteWriter(schema, quantised=quantised)

    def drawn(*shape: int) -> tuple[Numbers, Numbers]:
        fan = np.prod(shape[1:]) if shape[0] > 1 else 9
        outputs = shape[0] if shape[0] > 1 else shape[3]
        return rng.normal(0, (2 / fan) ** 0.5, shape), rng.normal(0, 0.1, outputs)

    image = writer.tensor((1, SIZE, SIZE, 3), (rgb - 127.5) / 127.5, low_high=(-1, 1))
    if quantised:  # TensorFlow's own choice
        writer.graph.tensors[image].quantization.scale = [1 / 128]
        writer.graph.tensors[image].quantization.zeroPoint = [128]
        writer.values[image] = (rgb - 128.0) / 128
    first = writer.conv(image, *drawn(8, 3, 3, 3), stride=2)
    deep = writer.conv(first, *drawn(1, 3, 3, 8))
    narrow = writer.conv(deep, *drawn(8, 1, 1, 8), relu6=False)
    total = writer.values[narrow] + writer.values[first]
    added = writer.tensor((1, *total.shape), total, low_high=(float(total.min()), float(total.max())))
    options = schema.AddOptionsT()
    writer.operator("ADD", [narrow, first], [added], options)
    second = writer.conv(added, *drawn(16, 3, 3, 8), stride=2)
    boxes: list[int] = []
    scores: list[int] = []
    for tap, channels, count in ((added, 8, COUNTS[0]), (second, 16, COUNTS[1])):
        for width, found in ((4, boxes), (COLUMNS, scores)):
            made = writer.conv(tap, *drawn(count * width, 1, 1, channels), relu6=False)
            found.append(_reshaped(writer, made, width))
    outputs = [_joined(writer, boxes, 4), _joined(writer, scores, COLUMNS)]
    if postprocess is None:
        return writer.write(path, [image], outputs)
    chances = 1 / (1 + np.exp(-writer.values[outputs[1]]))
    logistic = writer.tensor((1, *chances.shape), chances, low_high=(0, 255 / 256))
    writer.operator("LOGISTIC", [outputs[1]], [logistic])
    anchors = default_boxes(rng)
    kept = writer.tensor(anchors.shape, constant=anchors, low_high=(0, float(anchors.max())))
    from flatbuffers import flexbuffers

    wanted = postprocess["max_detections"]
    ends = [writer.tensor(shape) for shape in ((1, wanted, 4), (1, wanted), (1, wanted), (1,))]
    writer.operator(NAMES, [outputs[0], logistic, kept], ends, custom=flexbuffers.Dumps(postprocess))
    return writer.write(path, [image], ends)


def _reshaped(writer: TfliteWriter, taken: int, width: int) -> int:
    value = writer.values[taken].reshape(-1, width)
    made = _alike(writer, taken, value)
    shape = writer.tensor((3,), constant=np.int32([1, *value.shape]))
    writer.operator("RESHAPE", [taken, shape], [made], writer.schema.ReshapeOptionsT())
    return made


def _alike(writer: TfliteWriter, taken: int, value: Numbers) -> int:
    made = writer.tensor((1, *value.shape), value)
    source = writer.graph.tensors[taken]
    writer.graph.tensors[made].type, writer.graph.tensors[made].quantization = source.type, source.quantization
    return made


def _joined(writer: TfliteWriter, parts: list[int], width: int) -> int:
    value = np.concatenate([writer.values[place] for place in parts])
    made = writer.tensor((1, *value.shape), value, low_high=(float(value.min()), float(value.max())))
    options = writer.schema.ConcatenationOptionsT()
    options.axis = 1
    writer.operator("CONCATENATION", parts, [made], options)
    return made
