"""ONNX Runtime engine; needs nothing beyond the base install."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.card import METADATA_KEY, ModelCard
from multibox.errors import ModelFileError, OptionError

__all__ = ["OrtEngine"]

FloatArray = NDArray[np.float32]
INPUT, OUTPUTS = "images", ("offsets", "logits")
ERRORS_ONLY = 3  # ONNX Runtime's log severity: its warnings about absent GPUs are no concern of the user's


class OrtEngine:
    """Runs an `.onnx` file written by multibox.

    Args:
        path: the model file.
        device: "cpu", or "cuda" / "cuda:N" with a GPU build of ONNX Runtime.

    Raises:
        ModelFileError: missing, damaged, or not written by multibox.
        OptionError: the device is not available in this build.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(ERRORS_ONLY)
        self.device = device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        # Its idle threads would else spin on, and take the time of whatever reads and prepares the next picture.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not path.is_file():
            raise ModelFileError(str(path), "no such file", "check the path, or see `multibox list`")
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=_providers(onnxruntime, device))
        except OptionError:
            raise
        except Exception as error:  # its exception classes share no base but Exception
            reason = str(error).splitlines()[0]
            raise ModelFileError(str(path), f"ONNX Runtime cannot open it ({reason})", "get the file again") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise ModelFileError(
                str(path),
                "an ONNX file without multibox metadata, so its classes, preprocessing and boxes are unknown",
                "export it with multibox from its original weights",
            )
        self.card = ModelCard.from_json(metadata[METADATA_KEY], source=str(path))
        self._source = str(path)
        shapes = {
            value.name: tuple(value.shape) for value in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        if len(self._session.get_inputs()) != 1 or not {INPUT, *OUTPUTS} <= set(shapes):
            raise ModelFileError(str(path), f"it has {sorted(shapes)} instead of {[INPUT, *OUTPUTS]}", "export it anew")
        self.card.require_shapes(str(path), shapes)

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K]."""
        try:
            offsets, logits = self._session.run(OUTPUTS, {INPUT: images})
        except Exception as error:  # see above
            reason = f"ONNX Runtime failed on an input of {list(images.shape)} ({str(error).splitlines()[0]})"
            raise ModelFileError(
                self._source, reason, "use the batch size it was exported for, or export it anew"
            ) from None
        return offsets, logits


def _providers(onnxruntime: Any, device: str) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return ["CPUExecutionProvider"]
    if kind == "cuda" and (not number or number.isdigit()):
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return [("CUDAExecutionProvider", {"device_id": int(number or 0)})]
        raise OptionError(
            f"device {device!r}: this ONNX Runtime has no CUDA; install onnxruntime-gpu, or use device=cpu"
        )
    meant = f"did you mean cuda:{device}?" if device.isdigit() else "use cpu, cuda or cuda:0"
    raise OptionError(f"unknown device {device!r}; {meant}")
