"""int8 for OpenVINO, by NNCF's post-training quantisation."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.export.int8_onnx import OnnxQuantizer
from multibox.export.layout import Layout
from multibox.export.openvino import compose
from multibox.quiet import import_quietly

__all__ = ["OpenVinoQuantizer", "quantise_openvino"]

AROUND = r"(head|input)/.*"  # nodes around the network, which stay in float32


class OpenVinoQuantizer(OnnxQuantizer):
    """The layers to keep in float32 are found on the ONNX graph; NNCF quantises the whole model, and calibrates it."""

    engine = "nncf"

    def compose(self, layout: Layout, *, keep_float: Sequence[str] = ()) -> tuple[Any, list[str]]:
        """See the base class."""
        kept = [*self.always_float, *keep_float]
        model = compose(self.network, self.card, layout)
        return quantise_openvino(model, self._taken(layout), keep_float=[*kept, *sorted(self.behind)]), kept

    def _taken(self, layout: Layout) -> list[NDArray[Any]]:
        """The calibration pictures as the model takes them, each alone but for a batch that is fixed."""
        images: Sequence[NDArray[Any]] = self.inputs
        if layout.preprocess:
            images = self.pictures
            if layout.picture_hw is not None:
                height, width = layout.picture_hw
                images = [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in images]
        return [np.repeat(image[None], layout.batch or 1, axis=0) for image in images]


def quantise_openvino(model: Any, inputs: Sequence[NDArray[Any]], *, keep_float: Sequence[str]) -> Any:
    """An int8 `openvino.Model`.

    Args:
        model: an `openvino.Model` with the node names of ours.
        inputs: calibration inputs as the model takes them, with its batch axis.
        keep_float: nodes of the ONNX graph it came from that stay in float32.

    Raises:
        MissingDependencyError: openvino or nncf is not installed.
    """
    import_quietly("openvino", purpose="quantising for OpenVINO", extra="quantize")
    with _without_progress():
        nncf = import_quietly("nncf", purpose="quantising for OpenVINO", extra="quantize")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function would set the level of handlers of others
    names = "|".join(re.escape(name) for name in keep_float)
    present = {op.get_friendly_name() for op in model.get_ops()}
    # OpenVINO names the node that gives an output after the output.
    outputs = {result.input_value(0).get_node().get_friendly_name() for result in model.get_results()}
    around = {name for name in present if re.fullmatch(rf"{AROUND}|({names})(_0)?(/.*)?", name)}
    state = np.random.get_state()  # noqa: NPY002  # NNCF seeds the global generator; ours to leave as it was
    try:
        with _without_progress():
            return nncf.quantize(
                model,
                nncf.Dataset(list(inputs)),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=sorted(around | outputs), validate=False),
            )
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """Without progress bars, which would stand in the way of JSON on standard output, and without others' warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
