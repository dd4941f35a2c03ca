"""ONNX Runtime engine; needs nothing beyond the base install."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.errors import ModelFileError, OptionError, first_line
from multibox.inference.engines.interface import INPUT, OUTPUTS, in_groups, refuse_head
from multibox.spec.card import METADATA_KEY, ModelCard

__all__ = ["OrtEngine", "open_session"]

FloatArray = NDArray[np.float32]
CUDA = "CUDAExecutionProvider"
ERRORS_ONLY = 3  # ONNX Runtime's log severity: its warnings about absent GPUs are no concern of the user's


class OrtEngine:
    """Runs an `.onnx` file written by multibox.

    Args:
        path: the model file.
        device: "cpu", "cuda" / "cuda:N" with a GPU build of ONNX Runtime, or "auto" for the first GPU if there is one.
        threads: to compute with; as many as this process may use processors when left out.

    Raises:
        ModelFileError: missing, damaged, or not written by multibox.
        OptionError: the device is not available in this build.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        import onnxruntime  # a broken installation is no fault of the file

        if device == "auto":
            device = "cuda" if CUDA in onnxruntime.get_available_providers() else "cpu"
        self.device = device
        self.threads = threads or usable_cpus()
        if not path.is_file():
            raise ModelFileError(str(path), "no such file", "check the path, or see `multibox list`")
        self._path, self._identity = path, _identity(path)
        try:
            self._session = open_session(path, device, self.threads)
        except OptionError:
            raise
        except Exception as error:  # its exception classes share no base but Exception
            reason = first_line(error)
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
        refuse_head(str(path), metadata)
        shapes = {
            value.name: tuple(value.shape) for value in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        if len(self._session.get_inputs()) != 1 or not {INPUT, *OUTPUTS} <= set(shapes):
            raise ModelFileError(str(path), f"it has {sorted(shapes)} instead of {[INPUT, *OUTPUTS]}", "export it anew")
        self.card.require_shapes(str(path), shapes)
        batch = shapes[INPUT][0]
        self.batch = batch if isinstance(batch, int) else None

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K]; in groups where the batch is fixed."""
        return in_groups(images, self.batch, self._run)

    def _run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        try:
            offsets, logits = self._session.run(OUTPUTS, {INPUT: images})
        except Exception as error:  # see above
            reason = f"ONNX Runtime failed on an input of {list(images.shape)} ({first_line(error)})"
            raise ModelFileError(self._source, reason, "use the size it was exported for, or export it anew") from None
        return offsets, logits

    def concurrent(self, workers: int) -> OrtEngine | None:
        """The same model with this engine's threads divided among `workers` that call `run` at the same time.

        None on a GPU, and when the file has changed since it was opened.
        """
        if self.device != "cpu":
            return None
        twin = copy(self)
        twin.threads = max(1, self.threads // workers)
        try:
            twin._session = open_session(self._path, self.device, twin.threads)
            return twin if _identity(self._path) == self._identity else None
        except Exception:  # see above
            return None


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when a file is written anew."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def open_session(model: Path | bytes, device: str = "cpu", threads: int | None = None) -> Any:
    """An ONNX Runtime session of a file, or of its content.

    Args:
        model: the file, or its bytes.
        device: "cpu", or "cuda" / "cuda:N" with a GPU build of ONNX Runtime.
        threads: to compute with; as many as this process may use processors when left out.

    Raises:
        OptionError: the device is not available in this build.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or usable_cpus()
    # Its idle threads would else spin on, and take the time of whatever reads and prepares the next picture.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # int8 sums of 16 bits would else saturate on x86 processors without VNNI; has no effect on others.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, providers=_providers(onnxruntime, device))


def _providers(onnxruntime: Any, device: str) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return ["CPUExecutionProvider"]
    if kind == "cuda" and (not number or number.isdigit()):
        if CUDA in onnxruntime.get_available_providers():
            return [(CUDA, {"device_id": int(number or 0)})]
        raise OptionError(
            f"device {device!r}: this ONNX Runtime has no CUDA; install onnxruntime-gpu, or use device=cpu"
        )
    meant = f"did you mean cuda:{device}?" if device.isdigit() else "use cpu, cuda or cuda:0"
    raise OptionError(f"unknown device {device!r}; {meant}")
