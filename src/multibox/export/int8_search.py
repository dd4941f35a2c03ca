"""The search for an int8 file that costs no more than is allowed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.evaluation import EvaluationSet
from multibox.export.litert import write_litert
from multibox.export.onnx import network_graph, write_onnx
from multibox.export.openvino import convert, write_openvino
from multibox.export.quantize import Quantizer, noise_shares
from multibox.export.quantize_litert import LitertQuantizer
from multibox.export.request import ExportRequest
from multibox.export.verify.accuracy import See, cost, predictions
from multibox.export.verify.artefact import Artefact, EagerReference
from multibox.export.verify.samples import evenly, read_pictures
from multibox.export.verify.selection import CALIBRATED, Selection
from multibox.export.writing import composed, metadata_for
from multibox.spec.card import ModelCard

__all__ = ["Int8", "layers_in_words", "nothing_in_int8", "with_batch"]

SENSITIVITY_PICTURES = 4
QUANTIZERS = {".onnx": "onnxruntime.quantization", ".xml": "nncf", ".tflite": "ai-edge-quantizer"}  # by suffix
LARGEST_SHARE = 0.2  # of the noise of all layers together; one with more stays in float32 from the start

Say = Callable[[str], None]


class Int8:
    """Quantise, measure, and give layers back to float32 until the cost is allowed."""

    def __init__(
        self, request: ExportRequest, detector: Any, card: ModelCard, network: Any, data: Selection, say: Say
    ) -> None:
        self._request, self._card, self._network, self._data, self._say = request, card, network, data, say
        indexes = evenly(len(data.calibrate), CALIBRATED)
        self._pictures = read_pictures(data.calibrate, indexes)
        self._inputs = [card.preprocess(picture)[0] for picture in self._pictures]
        say(f"measuring scales on {len(self._inputs)} pictures")
        batch = request.fixed_batch
        self._free = network if batch in (None, 1) or request.is_litert else network_graph(detector, card)
        self._quantizer = (LitertQuantizer if request.is_litert else Quantizer)(self._free, self._inputs)
        self.reference: EvaluationSet = predictions(
            self._on_fitted(EagerReference(detector, card).see), card, data.measure, engine="torch", name="network"
        )

    def _on_fitted(self, see: See) -> See:
        """On pictures of the one size that the file takes, if it takes no other."""
        picture_hw = self._request.picture_hw(self._card)
        if picture_hw is None:
            return see
        return lambda pictures: see(_at(picture, picture_hw) for picture in pictures)

    def write(self, path: Path) -> dict[str, Any]:
        """Write the file; what was done for the report."""
        self._say("measuring every layer's share of the rounding noise")
        ranking = self._quantizer.sensitivity(self._inputs[:SENSITIVITY_PICTURES])
        shares = noise_shares(ranking)
        kept = [row.node for row, share in zip(ranking, shares, strict=True) if share > LARGEST_SHARE]
        trials: list[dict[str, Any]] = []
        limit = self._request.tolerances.max_drop
        while True:
            drops = self._drops(kept)
            trials.append({"float_layers": [self._quantizer.layer_of(node) for node in kept], **drops})
            self._say(
                f"int8 with {len(kept)} layers given back: AP50 falls by {drops['ap50']:.4f}, AP by {drops['ap']:.4f}"
            )
            if max(drops.values()) <= limit or len(kept) == len(self._quantizer.layers):
                break
            kept = [row.node for row in ranking[: 2 * max(1, len(kept))]]
        in_float = self._write_one(path, kept, metadata_for(self._card, self._request), final=True)
        layers = {*self._quantizer.layers, *self._quantizer.always_float}
        return {
            "engine": QUANTIZERS[path.suffix],
            "calibration_pictures": len(self._inputs),
            "float_layers": [self._quantizer.layer_of(node) for node in in_float],
            "int8_layers": len(layers) - len(in_float),
            "trials": trials,
            "sensitivity": [
                {"layer": row.layer, "snr_db": round(row.snr_db, 2), "noise_share": round(share, 4)}
                for row, share in zip(ranking, shares, strict=True)
            ],
            "selection": "layers are chosen by their noise on calibration pictures, their number by AP on the "
            "measured pictures",
        }

    def _drops(self, kept: Sequence[str]) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / f"trial{self._request.suffix}"
            batch = self._request.batch if self._request.is_litert else None
            plain = replace(self._request, head="raw", preprocess=False, dynamic=None, batch=batch, output=None)
            self._write_one(trial, kept, metadata_for(self._card, plain), final=False)
            artefact = Artefact(trial)
            after = predictions(
                self._on_fitted(artefact.see), artefact.card, self._data.measure, engine="int8", name="int8"
            )
            found = cost(self.reference, after, resamples=1)
        return {metric: found.drop(metric) for metric in ("ap50", "ap")}

    def _write_one(self, path: Path, kept: Sequence[str], metadata: dict[str, str], *, final: bool) -> list[str]:
        """Write a file; the layers that are float32 in it."""
        request, card = self._request, self._card
        in_float = [*self._quantizer.always_float, *kept]
        if isinstance(self._quantizer, LitertQuantizer):
            quantised = self._quantizer.quantised(keep_float=kept)
            write_litert(composed(quantised, card, request) if final else quantised, path, metadata)
            return in_float
        if path.suffix == ".onnx":
            quantised = self._quantizer.quantised(keep_float=kept)
            in_float += self._quantizer.also_float(quantised, kept)
            if not final:
                write_onnx(quantised, path, metadata)
                return in_float
            if self._free is not self._network:
                quantised = with_batch(quantised, request.fixed_batch)
            write_onnx(composed(quantised, card, request), path, metadata)
            return in_float
        from multibox.export.quantize_openvino import quantise_openvino

        model = convert(composed(self._network, card, request) if final else self._free)
        inputs: list[NDArray[Any]] = [image[None] for image in self._inputs]
        picture_hw = request.picture_hw(card)
        if final and picture_hw is not None:
            inputs = [_at(picture, picture_hw)[None] for picture in self._pictures]
        elif final and request.takes_pictures:
            inputs = [picture[None] for picture in self._pictures]
        if final and (request.fixed_batch or 1) > 1:
            inputs = [np.repeat(image, request.fixed_batch or 1, axis=0) for image in inputs]
        write_openvino(quantise_openvino(model, inputs, keep_float=in_float), path, metadata)
        return in_float


def layers_in_words(quantisation: Mapping[str, Any]) -> str:
    """How much of a file is int8."""
    whole, given_back = quantisation["int8_layers"], len(quantisation["float_layers"])
    return f"int8: {whole} layers, and {given_back} in float32"


def nothing_in_int8(quantisation: Mapping[str, Any]) -> list[str]:
    """A line if a file that calls itself int8 is not."""
    if quantisation["int8_layers"]:
        return []
    return ["int8: AP falls by less than max_drop only with every layer in float32; allow more, or export in float32"]


def _at(picture: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size_hw[1], size_hw[0])))


def with_batch(model: Any, batch: int | None) -> Any:
    """A graph with a free batch, pinned to one."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch or 1
    del model.graph.value_info[:]
    return model
