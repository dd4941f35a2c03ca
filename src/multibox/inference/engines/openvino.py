"""OpenVINO engine, for its own `.xml` files and for `.onnx` files."""

from __future__ import annotations

import threading
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.errors import ModelFileError, OptionError, did_you_mean, last_line
from multibox.inference.engines.interface import INPUT, OUTPUTS, in_groups, refuse_head
from multibox.quiet import import_quietly
from multibox.spec.card import METADATA_KEY, ModelCard

__all__ = ["OpenVinoEngine", "compiled", "read_metadata", "shared_core"]

FloatArray = NDArray[np.float32]
METADATA_SECTIONS = (METADATA_KEY, "framework")  # of rt_info: ours in an .xml, the reader's copy of an .onnx file's


class OpenVinoEngine:
    """Runs an OpenVINO `.xml` (with its `.bin` beside it) or an `.onnx` file written by multibox.

    Args:
        path: the model file.
        device: "cpu" (which "auto" stands for), or another device here by OpenVINO's name ("gpu", "npu", "gpu.1").
        threads: to compute with on a CPU; as many as this process may use processors when left out.

    Raises:
        MissingDependencyError: openvino is not installed.
        ModelFileError: missing, damaged, or not written by multibox.
        OptionError: no such device.
    """

    name = "openvino"

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        import_quietly("openvino", purpose=f"running {path.name} with OpenVINO", extra="openvino")
        self.device = device = "cpu" if device == "auto" else device
        self.threads = threads or usable_cpus()
        core = shared_core()
        if not path.is_file():
            raise ModelFileError(str(path), "no such file", "check the path, or see `multibox list`")
        wanted = device.upper()
        if wanted not in core.available_devices:
            known = [name.lower() for name in core.available_devices]
            raise OptionError(f"unknown device {device!r}; {did_you_mean(device, known)}")
        try:
            model = core.read_model(path)
        except Exception as error:  # its exceptions share no base but Exception
            reason = f"OpenVINO cannot open it ({last_line(error)})"
            raise ModelFileError(str(path), reason, "get the file again, with the .bin beside an .xml") from None
        metadata = read_metadata(model)
        if METADATA_KEY not in metadata:
            raise ModelFileError(
                str(path),
                "a file without multibox metadata, so its classes, preprocessing and boxes are unknown",
                "export it with multibox from its original weights",
            )
        self.card = ModelCard.from_json(metadata[METADATA_KEY], source=str(path))
        refuse_head(str(path), metadata)
        shapes = {port.any_name: _shape(port) for port in (*model.inputs, *model.outputs)}
        if len(model.inputs) != 1 or not {INPUT, *OUTPUTS} <= set(shapes):
            raise ModelFileError(str(path), f"it has {sorted(shapes)} instead of {[INPUT, *OUTPUTS]}", "export it anew")
        self.card.require_shapes(str(path), shapes)
        self.batch = shapes[INPUT][0]
        self._source = str(path)
        self._core, self._model = core, model
        try:
            self._requests = Requests(compiled(core, model, wanted, threads=self.threads))
        except Exception as error:  # see above
            reason = f"OpenVINO cannot prepare it for {device} ({last_line(error)})"
            raise ModelFileError(str(path), reason, "try device=cpu, or engine=onnxruntime") from None

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K]; in groups where the batch is fixed."""
        return in_groups(images, self.batch, self._run)

    def _run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        try:
            found = self._requests.own.infer({INPUT: np.ascontiguousarray(images)})
        except Exception as error:  # see above
            reason = f"OpenVINO failed on an input of {list(images.shape)} ({last_line(error)})"
            raise ModelFileError(self._source, reason, "use the size it was exported for, or export it anew") from None
        offsets, logits = (np.array(found[name]) for name in OUTPUTS)  # copies: the request reuses its memory
        return offsets, logits

    def concurrent(self, workers: int) -> OpenVinoEngine | None:
        """The same model with this engine's threads divided among `workers` that call `run` at the same time."""
        if self.device != "cpu":
            return None
        twin = copy(self)
        try:
            model = compiled(self._core, self._model, self.device.upper(), threads=self.threads, streams=workers)
            twin._requests = Requests(model)
        except Exception:  # see above
            return None
        return twin


@cache
def shared_core() -> Any:
    """The only `openvino.Core` of the process, which stays until its end.

    OpenVINO gives the thread that compiles first a stack for its signals, and unmaps it together with the last core. If
    another thread lets go of that, the first one keeps the address, and the next signal it handles ends the process.
    """
    return import_quietly("openvino", purpose="running it with OpenVINO", extra="openvino").Core()


class Requests(threading.local):
    """A request for each thread, since one serves a single caller at a time."""

    def __init__(self, compiled_model: Any) -> None:
        self.own = compiled_model.create_infer_request()


def compiled(core: Any, model: Any, device: str = "CPU", *, threads: int | None = None, streams: int = 1) -> Any:
    """A model made ready for so many callers at once, by default one; float32 where the model is float32."""
    hint = "LATENCY" if streams == 1 else "THROUGHPUT"
    options: dict[str, Any] = {"PERFORMANCE_HINT": hint, "NUM_STREAMS": str(streams)}
    if device.startswith("CPU"):
        # Processors with bfloat16 units would else round to it unasked.
        options |= {"INFERENCE_NUM_THREADS": str(threads or usable_cpus()), "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(model, device, options)


def read_metadata(model: Any) -> dict[str, str]:
    """The metadata of an `openvino.Model`, however its file kept it."""
    for section in METADATA_SECTIONS:
        if model.has_rt_info([section, METADATA_KEY]):
            keys = model.get_rt_info([section]).value
            return {str(key): str(model.get_rt_info([section, key]).value) for key in keys}
    return {}


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(None if d.is_dynamic else d.get_length() for d in port.get_partial_shape())
