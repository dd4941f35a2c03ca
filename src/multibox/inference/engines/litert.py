"""LiteRT engine, for `.tflite` files."""

from __future__ import annotations

import json
import threading
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.errors import ModelFileError, OptionError, last_line
from multibox.inference.engines.interface import INPUT, OUTPUTS, in_groups, refuse_head
from multibox.quiet import import_quietly, silenced
from multibox.spec.card import METADATA_KEY, ModelCard

__all__ = ["Interpreters", "LitertEngine", "read_metadata"]

FloatArray = NDArray[np.float32]
EXTRA = "litert-runtime"
IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every such file


class LitertEngine:
    """Runs a `.tflite` file written by multibox, with XNNPACK on the CPU.

    Args:
        path: the model file.
        device: "cpu".
        threads: to compute with; as many as this process may use processors when left out.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
        ModelFileError: missing, damaged, or not written by multibox.
        OptionError: another device.
    """

    name = "litert"

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        if device not in ("cpu", "auto"):
            raise OptionError(f"engine 'litert' runs on device=cpu, not on {device!r}")
        self.device = "cpu"
        self.threads = threads or usable_cpus()
        self._source = str(path)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ModelFileError(str(path), "no such file", "make one: multibox export MODEL format=litert") from None
        metadata = read_metadata(content, source=str(path))
        self.card = ModelCard.from_json(metadata[METADATA_KEY], source=str(path))
        refuse_head(str(path), metadata)
        self._interpreters = Interpreters(content, self.threads, source=str(path))
        shapes = self._interpreters.shapes
        if not {INPUT, *OUTPUTS} <= set(shapes):
            raise ModelFileError(str(path), f"it has {sorted(shapes)} instead of {[INPUT, *OUTPUTS]}", "export it anew")
        batch, height, width, channels = shapes[INPUT]
        self.card.require_shapes(str(path), {**shapes, INPUT: (batch, channels, height, width)})
        self.batch = batch

    def run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Network input [B, 3, H, W] -> offsets [B, A, 4] and logits [B, A, K].

        The file's own batch is fixed; any number of pictures is run in groups of it.
        """
        if images.shape[1:] != (3, *self.card.preprocess.size_hw):
            raise ModelFileError(
                self._source,
                f"LiteRT failed on an input of {list(images.shape)}",
                f"it takes [B, 3, {self.card.preprocess.size_hw[0]}, {self.card.preprocess.size_hw[1]}]",
            )
        return in_groups(images, self.batch, self._run)

    def _run(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        out = self._interpreters.run(images.transpose(0, 2, 3, 1))
        return out[OUTPUTS[0]], out[OUTPUTS[1]]

    def concurrent(self, workers: int) -> LitertEngine | None:
        """The same model with this engine's threads divided among `workers` that call `run` at the same time."""
        twin = copy(self)
        twin._interpreters = self._interpreters.divided(max(1, self.threads // workers))
        return twin


class Interpreters(threading.local):
    """An interpreter for each thread, since one serves a single caller at a time.

    Args:
        content: the file's bytes.
        threads: of each interpreter.
        source: the file, for messages.

    Attributes:
        shapes: of inputs and outputs by name.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
        ModelFileError: LiteRT cannot open it.
    """

    def __init__(self, content: bytes, threads: int, *, source: str) -> None:
        self._content, self._source = content, source
        with silenced(errors_only=True):  # it says there that it uses XNNPACK
            package = import_quietly("ai_edge_litert.interpreter", purpose=f"running {source}", extra=EXTRA)
            try:
                self._own = package.Interpreter(model_content=content, num_threads=threads)
                self._own.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                reason = f"LiteRT cannot open it ({last_line(error)})"
                raise ModelFileError(source, reason, "get the file again or export it anew") from None
        details = [*self._own.get_input_details(), *self._own.get_output_details()]
        self.shapes = {found["name"]: tuple(int(side) for side in found["shape"]) for found in details}
        self._input = self._own.get_input_details()[0]["index"]
        self._outputs = {found["name"]: found["index"] for found in self._own.get_output_details()}

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output by name, from the one input [B, H, W, 3]."""
        self._own.set_tensor(self._input, np.ascontiguousarray(images))
        self._own.invoke()
        return {name: self._own.get_tensor(index) for name, index in self._outputs.items()}

    def divided(self, threads: int) -> Interpreters:
        """The same model with so many threads each."""
        return Interpreters(self._content, threads, source=self._source)


def read_metadata(content: bytes, *, source: str) -> dict[str, str]:
    """The metadata of a `.tflite` file written by multibox.

    Args:
        content: the file's bytes.
        source: the file, for messages.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
        ModelFileError: damaged, or not written by multibox.
    """
    schema = import_quietly("ai_edge_litert.schema_py_generated", purpose=f"running {source}", extra=EXTRA)
    if content[4:8] != IDENTIFIER:
        raise ModelFileError(source, "it is not a TensorFlow Lite file", "get the file again or export it anew")
    try:
        model = schema.Model.GetRootAs(content, 0)
        entries = {model.Metadata(i).Name(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
        text = None
        if METADATA_KEY.encode() in entries:
            text = model.Buffers(entries[METADATA_KEY.encode()]).DataAsNumpy().tobytes()
        found = None if text is None else json.loads(text)
    except Exception as error:  # reading outside the file raises what NumPy, struct and others raise
        reason = f"its metadata are damaged ({type(error).__name__})"
        raise ModelFileError(source, reason, "get the file again or export it anew") from None
    if not isinstance(found, dict) or not isinstance(found.get(METADATA_KEY), str):
        raise ModelFileError(
            source,
            "a file without multibox metadata, so its classes, preprocessing and boxes are unknown",
            "export it with multibox from its original weights",
        )
    return {str(key): str(value) for key, value in found.items()}
