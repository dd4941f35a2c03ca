"""What an exported file is besides its network, and what its metadata say of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from multibox.export.heads import HEADS
from multibox.spec.card import METADATA_KEY, ModelCard

__all__ = ["INPUT", "NETWORK_INPUT", "Layout", "metadata_of"]

INPUT = "images"
NETWORK_INPUT = "network_input"  # what the input of the network is called where preprocessing comes before it


@dataclass(frozen=True)
class Layout:
    """The parts around a network.

    Args:
        head: a key of `HEADS`.
        batch: pictures at once; free when left out.
        preprocess: take 8-bit RGB pictures [batch, height, width, 3] in place of prepared input.
        picture_hw: their (height, width), if they all have one.
    """

    head: str = "raw"
    batch: int | None = None
    preprocess: bool = False
    picture_hw: tuple[int, int] | None = None


def metadata_of(card: ModelCard, layout: Layout | None = None, *, precision: str = "float32") -> dict[str, str]:
    """The card, and the keys that other runtimes' tools read (those of the ultralytics exporters among them).

    Args:
        card: of the model.
        layout: left out for a model that `multibox` alone runs, whose file says less.
        precision: "float32" or "int8".
    """
    from multibox import __version__

    head = HEADS["raw" if layout is None else layout.head]
    metadata = {
        METADATA_KEY: card.to_json(),
        "description": f"{card.name}: single-shot detector, raw outputs",
        "license": card.licence,
        "task": "detect",
        "stride": str(max(level["stride"] or 0 for level in card.summary["levels"])),
        "imgsz": json.dumps(list(card.preprocess.size_hw)),
        "names": repr(dict(enumerate(card.class_map.names))),
        "preprocess": json.dumps(card.preprocess.to_dict(), sort_keys=True),
        "box_format": head.box_format,
        "anchors_sha256": card.anchors_sha256,
    }
    if layout is None:
        return metadata
    if layout.picture_hw is not None:
        metadata["picture_hw"] = json.dumps(list(layout.picture_hw))
    softmax = card.postprocess.activation == "softmax"
    return metadata | {
        "description": f"{card.name}: single-shot detector, head {head.name}",
        "version": __version__,
        "batch": str(layout.batch or 1),
        "args": repr({"batch": layout.batch or 1, "dynamic": layout.batch is None}),
        "channels": "3",
        "head": head.name,
        "input": "uint8 [batch, height, width, 3]: upright RGB pictures"
        if layout.preprocess
        else "float32 [batch, 3, H, W]",
        "preprocessing_inside": json.dumps(layout.preprocess),
        "outputs": json.dumps(head.shapes(card, layout.batch or "batch")),
        "precision": precision,
        "nms": json.dumps(card.postprocess.to_dict(), sort_keys=True),
        "nms_inside": json.dumps(head.name not in ("raw", "decoded")),
        "scores": "after softmax, background removed" if softmax else "after sigmoid",
    }
