"""An exported file, or folder, run as its users run it: every output by name from a batch of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from multibox.cpus import usable_cpus
from multibox.errors import ModelFileError, last_line
from multibox.export.layout import INPUT, NETWORK_INPUT
from multibox.export.litert_graph import LitertGraph
from multibox.export.triton import MODEL, faults
from multibox.inference.engines.litert import Interpreters, read_metadata
from multibox.inference.engines.onnxruntime import open_session
from multibox.quiet import import_quietly
from multibox.spec.card import ModelCard

__all__ = ["RunFailedError", "Runner", "open_runner"]

LONGEST = 300  # characters of a runtime's message


class RunFailedError(Exception):
    """A file that its runtime has opened cannot be run, or gives what it should not give."""


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """What a runtime raises as the file's error; nothing but its own calls belongs into the block."""
    try:
        yield
    except Exception as error:  # what runtimes raise shares no base but Exception
        reason = f"its runtime cannot open it ({last_line(error)})"
        raise ModelFileError(str(path), reason, "export it anew") from error


@contextmanager
def _running() -> Iterator[None]:
    """As `_opening`, for a run."""
    try:
        yield
    except Exception as error:  # see there
        raise RunFailedError(" ".join(str(error).split())[:LONGEST]) from error


class Runner(ABC):
    """Runs a file.

    Args:
        path: the file.
        probes: names of tensors to return besides its outputs, where it has them.

    Attributes:
        metadata: of the file.
    """

    metadata: dict[str, str]

    @abstractmethod
    def __init__(self, path: Path, probes: Sequence[str]) -> None: ...

    @abstractmethod
    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output by name; prepared input is [B, 3, H, W], whatever layout the file has.

        Raises:
            RunFailedError: the runtime fails.
        """

    def faults(self, card: ModelCard) -> list[str]:
        """What the files beside the graph say of it and of a model that is not so; a line each."""
        return []


class OnnxRunner(Runner):
    def __init__(self, path: Path, probes: Sequence[str]) -> None:
        with _opening(path):
            model = onnx.load(path)
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        made = {name for node in model.graph.node for name in node.output} - {o.name for o in model.graph.output}
        for name in probes:
            if name in made:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        with _opening(path):
            self._session = open_session(model.SerializeToString() if probes else path.read_bytes())
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with _running():
            outputs = self._session.run(None, {INPUT: images})
        return dict(zip(self._names, outputs, strict=True))


class TritonRunner(OnnxRunner):
    def __init__(self, path: Path, probes: Sequence[str]) -> None:
        super().__init__(path / MODEL, probes)
        self._folder = path
        with _opening(path):
            self._as_it_is = open_session(path / MODEL)

    def faults(self, card: ModelCard) -> list[str]:
        return faults(self._folder, self._as_it_is, card)


class OpenVinoRunner(Runner):
    def __init__(self, path: Path, probes: Sequence[str]) -> None:
        import_quietly("openvino", purpose=f"checking {path.name}", extra="openvino")
        from multibox.inference.engines.openvino import compiled, read_metadata, shared_core

        core = shared_core()
        with _opening(path):
            model = core.read_model(path)
        self.metadata = read_metadata(model)
        present = {name for port in (*model.inputs, *model.outputs) for name in port.names}
        inside = {name for node in model.get_ops() for port in node.outputs() for name in port.names} - present
        for name in probes:
            if name in inside:
                model.add_outputs(name)
        self._names = [port.names for port in model.outputs]
        with _opening(path):
            self._request = compiled(core, model).create_infer_request()

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with _running():
            self._request.infer({INPUT: images})
        out: dict[str, NDArray[Any]] = {}
        for place, names in enumerate(self._names):
            out |= dict.fromkeys(names, np.array(self._request.get_output_tensor(place).data))
        return out


class LitertRunner(Runner):
    def __init__(self, path: Path, probes: Sequence[str]) -> None:
        content = path.read_bytes()
        self.metadata = read_metadata(content, source=str(path))
        if probes:
            graph = LitertGraph(content)
            graph.show(probes)
            content = graph.content()
        self._interpreters = Interpreters(content, usable_cpus(), source=str(path))

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        prepared = images.dtype == np.float32
        given = images.transpose(0, 2, 3, 1) if prepared else images
        with _running():
            out = self._interpreters.run(given)
        if NETWORK_INPUT in out:
            out[NETWORK_INPUT] = out[NETWORK_INPUT].transpose(0, 3, 1, 2)
        return out


RUNNERS: dict[str, type[Runner]] = {".onnx": OnnxRunner, ".xml": OpenVinoRunner, ".tflite": LitertRunner}


def open_runner(path: Path, probes: Sequence[str] = ()) -> Runner:
    """The runner of a file, or of a folder of Triton's.

    Args:
        path: its suffix says which.
        probes: names of tensors to return besides its outputs, where it has them.
    """
    return TritonRunner(path, probes) if path.is_dir() else RUNNERS[path.suffix](path, probes)
