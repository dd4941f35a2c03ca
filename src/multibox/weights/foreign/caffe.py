"""Import of Caffe's SSDs: a `.prototxt` and the `.caffemodel` beside it.

Caffe itself is not needed. The network is built from the prototxt, layer by layer; the caffemodel gives its weights.
What neither says, how a picture is prepared, follows from the family, which the names of the layers tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.errors import ContractError, ModelFileError
from multibox.models.registry import create_model
from multibox.spec.classes import VOC_CLASSES, ClassMap
from multibox.spec.preprocess import ColourOrder, Preprocess
from multibox.weights.foreign.caffe_graph import CaffeSsd, describe
from multibox.weights.foreign.caffe_layers import number
from multibox.weights.foreign.names import class_names
from multibox.weights.foreign.protobuf import Text, floats, integers, parse_text, read_wire
from multibox.weights.foreign.table import Imported

__all__ = ["read", "read_blobs", "recognise"]

PROTOTXT, CAFFEMODEL = ".prototxt", ".caffemodel"
EPSILON = 1e-5  # of Caffe's batch normalisation
HALF = 2  # the type that OpenCV gives blobs of float16
EVIDENCE = ('type: "DetectionOutput"', 'name: "scores"')
Arrays = dict[str, list[NDArray[np.float32]]]


@dataclass(frozen=True)
class Family:
    """How pictures are prepared for the networks with these layers, and what they find.

    Args:
        title: of the networks.
        layers: names that a network must have.
        mean, scale: per channel of `order`: (value - mean) * scale.
        order: of the channels.
        classes: their names, where they are known by the number of classes.
    """

    title: str
    layers: tuple[str, ...]
    mean: tuple[float, float, float]
    scale: float = 1.0
    order: ColourOrder = "BGR"
    classes: tuple[str, ...] = ()


FAMILIES = (
    Family("OpenCV's res10 face detector", ("data_bn", "layer_512_1_conv2_h"), (104, 177, 123), classes=("face",)),
    Family("MobileNet-SSD", ("conv0", "conv13/dw"), (127.5,) * 3, 0.007843, classes=VOC_CLASSES.names),
    Family("SSD on VGG16", ("conv1_1", "fc7", "conv4_3_norm"), (104, 117, 123), classes=VOC_CLASSES.names),
    Family("an Ultra-Light face detector", ("scores", "boxes"), (127,) * 3, 1 / 128, "RGB", classes=("face",)),
)


def recognise(path: Path) -> str | None:
    """A prototxt with an SSD's outputs, or the caffemodel beside such a one."""
    try:
        prototxt, _ = _files(path)
        content = prototxt.read_text(encoding="utf-8", errors="replace")
    except (ModelFileError, OSError):
        return None
    found = next((line for line in EVIDENCE if line in content), None)
    return None if found is None else f"the layer {found} in {prototxt.name}"


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a prototxt and a caffemodel; either of them, or the folder that holds them, may be named."""
    prototxt, caffemodel = _files(path)
    try:
        text = parse_text(prototxt.read_text(encoding="utf-8", errors="replace"))
        ssd = describe(text)
    except ContractError as error:
        raise ContractError(f"{prototxt.name}: {error}") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(str(prototxt), f"not a usable prototxt ({error})", "get the file again") from None
    family = next((one for one in FAMILIES if ssd.names >= set(one.layers)), None)
    preprocess, said = _preprocess(text, ssd, family)
    network = create_model("graph_ssd", **ssd.arguments, preprocess=preprocess.to_dict())
    _fill(network, ssd, read_blobs(caffemodel), caffemodel)
    known = None if family is None else ClassMap(family.classes)
    names = class_names(network.spec.num_classes, class_map, known)
    title = "a Caffe SSD" if family is None else family.title
    source = f"{title} from {prototxt.name} and {caffemodel.name}"
    return Imported(network.eval(), names, caffemodel.stem, source, notes=(*ssd.notes, said))


def _files(path: Path) -> tuple[Path, Path]:
    """The prototxt and the caffemodel that belong together.

    Raises:
        ModelFileError: one is missing, or several could be meant.
    """
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.suffix.lower() not in (PROTOTXT, CAFFEMODEL):
        raise ModelFileError(str(path), "neither a .prototxt nor a .caffemodel", "name one of the two files")
    found = []
    for suffix in (PROTOTXT, CAFFEMODEL):
        if path.suffix.lower() == suffix and path.is_file():
            found.append(path)
            continue
        there = sorted(file for file in folder.iterdir() if file.suffix.lower() == suffix) if folder.is_dir() else []
        same = [file for file in there if file.stem == path.stem]
        deploying = [file for file in there if "deploy" in file.stem.lower()]
        chosen = next((files for files in (same, there, deploying) if len(files) == 1), None)
        if chosen is None:
            wrong = "none" if not there else f"{len(there)} ({', '.join(file.name for file in there[:4])})"
            raise ModelFileError(
                str(path), f"a {suffix} belongs to it, but beside it there is {wrong}", "put the right one beside it"
            )
        found.append(chosen[0])
    return found[0], found[1]


def read_blobs(path: Path) -> Arrays:
    """The arrays of every layer of a caffemodel that has some.

    Raises:
        ModelFileError: it cannot be read, or is cut off.
    """
    try:
        net = read_wire(memoryview(path.read_bytes()))
        if 100 not in net:
            raise ValueError("no layers of today's form in it")
        blobs: Arrays = {}
        for layer in map(_message, net[100]):
            if 7 in layer:
                blobs[bytes(_message_bytes(layer[1][0])).decode()] = [_array(_message(blob)) for blob in layer[7]]
    except OSError as error:
        raise ModelFileError(str(path), f"cannot be read ({error.strerror})", "check the path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(str(path), f"not a usable caffemodel ({error})", "get the file again") from None
    return blobs


def _message_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _message(value: int | memoryview) -> Any:
    return read_wire(_message_bytes(value))


def _array(blob: Any) -> NDArray[np.float32]:
    """One blob: float32, float64, or OpenCV's float16."""
    if 7 in blob:
        shape = integers(_message(blob[7][0]).get(1, []))
    else:
        shape = [int(blob.get(key, [1])[0]) for key in (1, 2, 3, 4)]
    if blob.get(10, [0])[0] == HALF:
        values = floats(blob[12], "<f2")
    else:
        values = floats(blob[8], "<f8") if 8 in blob else floats(blob.get(5, []))
    return values.reshape(shape)


def _preprocess(text: Text, ssd: CaffeSsd, family: Family | None) -> tuple[Preprocess, str]:
    """As the prototxt says, else as its family is used; and what that is, in words."""
    told: Text = next((m for layer in text.get("layer", []) for m in layer.get("transform_param", [])), {})
    if "mean_value" in told or "scale" in told:
        values = [float(value) for value in told.get("mean_value", ["0"])]
        mean, scale, order, why = (values * 3)[:3], number(told, "scale", 1.0), "BGR", "its transform_param"
    elif family is not None:
        mean, scale, order, why = list(family.mean), family.scale, family.order, f"{family.title}, by its layers"
    else:
        raise ContractError(
            "nothing says how a picture is prepared for it; add the mean and scale that it was trained with to a layer "
            "of the prototxt, as transform_param { scale: 1 mean_value: 104 mean_value: 117 mean_value: 123 }"
        )
    made = Preprocess(
        ssd.size_hw,
        colour_order=order,  # type: ignore[arg-type]
        mean=tuple(mean),  # type: ignore[arg-type]
        scale=(scale,) * 3,
        rounding=True,
    )
    return made, f"pictures are prepared as {order}, minus {', '.join(f'{v:g}' for v in mean)}, times {scale:g}: {why}"


def _fill(network: torch.nn.Module, ssd: CaffeSsd, blobs: Arrays, path: Path) -> None:
    """Load the weights: every layer of ours is filled, and every array of a layer that ours has is used.

    Raises:
        ContractError: arrays that are missing, too many, or of another shape.
    """
    expected = network.state_dict()
    blobs = _merged(blobs, ssd)
    state: dict[str, torch.Tensor] = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    wrong: list[str] = []
    for layer, (prefix, kind) in ssd.places.items():
        keys = _keys(prefix, kind, expected)
        arrays = blobs.get(layer, [])
        if kind == "norm" and len(arrays) == 3:
            factor = float(arrays[2].reshape(-1)[0])
            arrays = [array * np.float32(0 if factor == 0 else 1 / factor) for array in arrays[:2]]
        if len(arrays) != len(keys):
            wrong.append(f"{layer} has {len(arrays)} arrays instead of {len(keys)}")
            continue
        for key, array in zip(keys, arrays, strict=True):
            shape = tuple(expected[key].shape)
            if array.size != int(np.prod(shape)) or (len(shape) > 1 and tuple(array.shape) != shape):
                wrong.append(f"{layer}: {list(array.shape)} instead of {list(shape)}")
            else:
                state[key] = torch.from_numpy(np.array(array.reshape(shape)))
    unknown = sorted(blobs.keys() - ssd.places.keys())
    wrong += [f"{layer} is no layer of the prototxt" for layer in unknown]
    if wrong:
        shown = "; ".join(wrong[:4]) + (f"; {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ContractError(f"{path.name} does not belong to this prototxt: {shown}")
    network.load_state_dict(state)


def _merged(blobs: Arrays, ssd: CaffeSsd) -> Arrays:
    """With normalisation merged into convolutions, where the caffemodel is of training and the prototxt is not.

    The weights of training have convolutions without bias, each with `NAME/bn` and `NAME/scale` behind it.
    """
    found = dict(blobs)
    for layer, (_, kind) in ssd.places.items():
        behind = (f"{layer}/bn", f"{layer}/scale")
        if kind != "conv" or len(found.get(layer, ())) != 1 or not all(name in found for name in behind):
            continue
        mean, variance, factor = (array.astype(np.float64).reshape(-1) for array in found.pop(behind[0]))
        gamma, beta = (array.astype(np.float64).reshape(-1) for array in found.pop(behind[1]))
        share = 0 if factor[0] == 0 else 1 / factor[0]
        gain = gamma / np.sqrt(variance * share + EPSILON)
        kernel = found[layer][0] * gain[:, None, None, None]
        found[layer] = [kernel.astype(np.float32), (beta - mean * share * gain).astype(np.float32)]
    return found


def _keys(prefix: str, kind: str, expected: Mapping[str, torch.Tensor]) -> list[str]:
    names = {"conv": ("weight", "bias"), "norm": ("running_mean", "running_var"), "scale": ("weight", "bias")}
    return [f"{prefix}.{name}" for name in names.get(kind, ("weight",)) if f"{prefix}.{name}" in expected]
