"""The search for an int8 file that costs no more than is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from multibox.data.sampling import evenly
from multibox.errors import counted
from multibox.evaluation import EvaluationSet
from multibox.export.int8 import noise_shares
from multibox.export.layout import Layout, metadata_of
from multibox.export.request import ExportRequest
from multibox.export.selection import CALIBRATED, Selection
from multibox.export.verify.accuracy import cost, predictions
from multibox.export.verify.artefact import Artefact, EagerReference
from multibox.export.verify.samples import read_pictures
from multibox.spec.card import ModelCard

__all__ = ["Int8Search", "layers_in_words", "nothing_in_int8"]

SENSITIVITY_PICTURES = 4
LARGEST_SHARE = 0.2  # of the noise of all layers together; one with more stays in float32 from the start

Say = Callable[[str], None]


class Int8Search:
    """Quantise, measure, and give layers back to float32 until the cost is allowed.

    Args:
        request: what is asked for.
        detector: the network, in evaluation mode.
        card: how it is fed and read.
        network: as the format's `convert_network` makes it.
        data: pictures that set the scales, and others to measure on.
        say: told what is being done.
    """

    def __init__(
        self, request: ExportRequest, detector: Any, card: ModelCard, network: Any, data: Selection, say: Say
    ) -> None:
        self._row, self._card, self._data, self._say = request.row, card, data, say
        self._layout, self._limit = request.layout(card), request.tolerances.max_drop
        pictures = read_pictures(data.calibrate, evenly(len(data.calibrate), CALIBRATED))
        say(f"measuring scales on {len(pictures)} pictures")
        self._quantizer = self._row.quantizer(network, card, pictures)
        eager = EagerReference(detector, card, picture_hw=self._layout.picture_hw)
        self.reference: EvaluationSet = predictions(eager, data.measure, name="network")

    def write(self, path: Path) -> dict[str, Any]:
        """Write the file; what was done for the report."""
        quantizer = self._quantizer
        self._say("measuring every layer's share of the rounding noise")
        ranking = quantizer.sensitivity(SENSITIVITY_PICTURES)
        shares = noise_shares(ranking)
        kept = [row.node for row, share in zip(ranking, shares, strict=True) if share > LARGEST_SHARE]
        trials: list[dict[str, Any]] = []
        while True:
            drops = self._drops(kept)
            trials.append({"float_layers": [quantizer.layer_of(node) for node in kept], **drops})
            self._say(
                f"int8 with {counted(len(kept), 'layer')} kept in float: "
                f"AP50 {0.0 - drops['ap50']:+.4f}, AP {0.0 - drops['ap']:+.4f}"
            )
            if max(drops.values()) <= self._limit or len(kept) == len(quantizer.layers):
                break
            kept = [row.node for row in ranking[: 2 * max(1, len(kept))]]
        in_float = self._write(path, kept, self._layout)
        layers = {*quantizer.layers, *quantizer.always_float}
        return {
            "engine": quantizer.engine,
            "calibration_pictures": len(quantizer.inputs),
            "float_layers": [quantizer.layer_of(node) for node in in_float],
            "int8_layers": len(layers) - len(in_float),
            "trials": trials,
            "sensitivity": [
                {"layer": row.layer, "snr_db": round(row.snr_db, 2), "noise_share": round(share, 4)}
                for row, share in zip(ranking, shares, strict=True)
            ],
            "selection": "layers are chosen by their noise on calibration pictures, their number by AP on the "
            "measured pictures",
        }

    def _write(self, path: Path, kept: list[str], layout: Layout) -> list[str]:
        """Write a file with these layers in float32; all layers that are float32 in it."""
        model, in_float = self._quantizer.compose(layout, keep_float=kept)
        self._row.writer.write(model, path, metadata_of(self._card, layout, precision="int8"), self._card)
        return in_float

    def _drops(self, kept: list[str]) -> dict[str, float]:
        """What AP and AP50 lose in a file with raw outputs."""
        with TemporaryDirectory() as folder:
            trial = Path(folder) / f"trial{self._row.suffix}"
            batch = self._layout.batch if self._row.fixed_batch else None
            self._write(trial, kept, Layout(batch=batch, picture_hw=self._layout.picture_hw))
            found = cost(self.reference, predictions(Artefact(trial), self._data.measure, name="int8"), resamples=1)
        return {metric: found.drop(metric) for metric in ("ap50", "ap")}


def layers_in_words(quantisation: Mapping[str, Any]) -> str:
    """How much of a file is int8."""
    whole, given_back = quantisation["int8_layers"], len(quantisation["float_layers"])
    return f"int8: {whole} layers, and {given_back} in float32"


def nothing_in_int8(quantisation: Mapping[str, Any]) -> list[str]:
    """A line if a file that calls itself int8 is not."""
    if quantisation["int8_layers"]:
        return []
    return ["int8: AP falls by less than max_drop only with every layer in float32; allow more, or export in float32"]
