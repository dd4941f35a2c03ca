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

from multibox.quiet import import_quietly

__all__ = ["quantise_openvino"]

HEAD_AND_INTAKE = r"(head|intake)\..*"  # what stands around the network stays in float32


def quantise_openvino(model: Any, inputs: Sequence[NDArray[Any]], *, keep_float: Sequence[str]) -> Any:
    """An int8 `openvino.Model`.

    Args:
        model: an `openvino.Model` with the node names of ours.
        inputs: calibration inputs, one picture each, as the model takes them (with its batch axis).
        keep_float: nodes of the ONNX graph it came from that stay in float32.

    Raises:
        MissingDependencyError: openvino or nncf is not installed.
    """
    import_quietly("openvino", purpose="quantising for OpenVINO", extra="quantize")
    with _silent():
        nncf = import_quietly("nncf", purpose="quantising for OpenVINO", extra="quantize")
        nncf.set_log_level(logging.ERROR)
    names = "|".join(re.escape(name) for name in keep_float)
    present = {op.get_friendly_name() for op in model.get_ops()}
    ignored = sorted(name for name in present if re.fullmatch(rf"{HEAD_AND_INTAKE}|({names})(_0)?(/.*)?", name))
    state = np.random.get_state()  # noqa: NPY002  # NNCF seeds the global generator; ours to leave as it was
    try:
        with _silent():
            return nncf.quantize(
                model,
                nncf.Dataset(list(inputs)),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            )
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without progress bars, which would stand in the way of JSON on standard output, and without others' warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
