"""Import of torchvision's `ssd300_vgg16` state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multibox.errors import ContractError
from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model
from multibox.spec.classes import ClassMap
from multibox.weights.foreign.names import COCO_WITH_UNUSED, class_names
from multibox.weights.foreign.state_dicts import read_state_dict, tensors_of
from multibox.weights.foreign.table import Imported

__all__ = ["import_ssd300_vgg16", "read", "recognise"]

# torchvision's mean of [0, 1] values, in 0 … 255; its deviation of 1/255 makes the scale 1.
MEAN_RGB = tuple(255 * value for value in (0.48235, 0.45882, 0.40784))
FIRST_BOXES_PER_CELL = 4
EVIDENCE = ("backbone.scale_weight", "head.classification_head.module_list.0.bias")

_CONVS_TO_CONV4_3 = {
    0: "1_1",
    2: "1_2",
    5: "2_1",
    7: "2_2",
    10: "3_1",
    12: "3_2",
    14: "3_3",
    17: "4_1",
    19: "4_2",
    21: "4_3",
}


def recognise(path: Path) -> str | None:
    """A `.pth` file whose keys are those of torchvision's network."""
    keys = tensors_of(path)
    return f"the keys {' and '.join(EVIDENCE)}" if keys and set(EVIDENCE) <= keys.keys() else None


def read(path: Path, class_map: ClassMap | None = None) -> Imported:
    """The network of a state dict."""
    network, classes = import_ssd300_vgg16(read_state_dict(path), class_map)
    return Imported(network, classes, path.stem, f"torchvision ssd300_vgg16 state dict {path.name}")


def _key_table() -> dict[str, str]:
    """Our parameter prefix for each of theirs."""
    table = {
        f"backbone.features.{index}": f"features.to_conv4_3.{int(name[0]) - 1}.conv{name}"
        for index, name in _CONVS_TO_CONV4_3.items()
    }
    table |= {f"backbone.extra.0.{2 * i - 1}": f"features.to_fc7.0.conv5_{i}" for i in (1, 2, 3)}
    table |= {"backbone.extra.0.7.1": "features.to_fc7.1.fc6", "backbone.extra.0.7.3": "features.to_fc7.1.fc7"}
    for k in range(1, 5):
        for theirs, half in ((0, 1), (2, 2)):
            table[f"backbone.extra.{k}.{theirs}"] = f"features.extras.{k - 1}.conv{k + 7}_{half}"
    for level in range(6):
        table[f"head.classification_head.module_list.{level}"] = f"heads.0.logits.{level}"
        table[f"head.regression_head.module_list.{level}"] = f"heads.0.offsets.{level}"
    return table


def import_ssd300_vgg16(
    state_dict: Mapping[str, Tensor], class_map: ClassMap | None = None
) -> tuple[DetectionNetwork, ClassMap]:
    """Our SSD300 with torchvision's weights, preprocessing, COCO scales, box clipping and thresholds.

    Args:
        state_dict: of `torchvision.models.detection.ssd300_vgg16`, with any class count.
        class_map: names of the classes without background, in the order of the outputs. Without it, 91 outputs mean
            COCO (ids without a name are kept as "unused 12" and the like, because softmax needs their rows) and
            other counts get "class 0", "class 1", …

    Raises:
        ContractError: keys or shapes that are not ssd300_vgg16's, or a class map of another length.
    """
    table = _key_table()
    ours: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        prefix, _, kind = key.rpartition(".")
        if key == "backbone.scale_weight":
            ours["features.conv4_3_norm.weight"] = value
        elif prefix in table:
            ours[f"{table[prefix]}.{kind}"] = value
        else:
            raise ContractError(f"{key!r} is no parameter of torchvision's ssd300_vgg16")
    first = ours.get("heads.0.logits.0.bias")
    if first is None:
        raise ContractError("the state dict has no classification head; it is not torchvision's ssd300_vgg16")
    classes = first.shape[0] // FIRST_BOXES_PER_CELL - 1
    names = class_names(classes, class_map, COCO_WITH_UNUSED)
    detector = create_model(
        "ssd300_vgg16", num_classes=classes, scales="coco", clip="wh", mean=list(MEAN_RGB), clip_boxes="before_nms"
    )
    try:
        detector.load_state_dict(ours)
    except RuntimeError as error:
        raise ContractError(f"the state dict does not fit ssd300_vgg16: {error}") from None
    return detector.eval(), names
