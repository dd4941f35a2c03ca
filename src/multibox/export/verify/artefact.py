"""An exported file as its users run it, whatever its head, and the network it must agree with."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.cpus import usable_cpus
from multibox.errors import ModelFileError, last_line
from multibox.export.heads import FRIGATE_LABEL_BASE, RAW_OUTPUTS
from multibox.export.picture_input import NETWORK_INPUT
from multibox.export.triton import MODEL
from multibox.export.verify.litert import litert_session
from multibox.export.verify.repository import Repository
from multibox.quiet import import_quietly
from multibox.spec.card import METADATA_KEY, ModelCard
from multibox.spec.detections import Detections
from multibox.spec.postprocess import PostprocessSpec, nms_np, postprocess_np

__all__ = ["Artefact", "EagerReference", "Found", "Seen"]

Picture = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
BATCHES = (1, 3, 2)  # sizes of the groups that a file with a free batch is run on, in turn
FIRST_CANDIDATES = 4096  # of decoded boxes, enough for the usual 100 to 200 detections


@dataclass(frozen=True)
class Found:
    """Detections of one picture in the unit frame, best first: boxes [N, 4], scores [N], labels [N]."""

    unit_xyxy: FloatArray
    scores: FloatArray
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """What came of one picture: detections, and the tensors on the way by name where they were asked for."""

    found: Found
    tensors: dict[str, FloatArray] = field(default_factory=dict)


class Session(Protocol):
    """Runs a graph: named outputs from an array."""

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output by name."""
        ...

    def faults(self, card: ModelCard) -> list[str]:
        """What the files beside the graph say of it and of a model that is not so; a line each."""
        ...


Opener = Callable[[Path, Sequence[str]], tuple[Session, dict[str, str]]]


class Artefact:
    """An exported file, or folder of a Triton repository; all it needs to be fed and read is in its own metadata.

    Args:
        path: the `.onnx`, `.xml` or `.tflite` file, or the folder.
        probe: also return the tensors on the way (the network's input after in-graph preprocessing, and the raw
            predictions). The graph that runs is then a copy with these as further outputs.

    Raises:
        ModelFileError: the runtime cannot open it, or it has no metadata.
    """

    def __init__(self, path: Path, *, probe: bool = False) -> None:
        self.path = path
        openers: dict[str, Opener] = {".xml": _openvino_session, ".tflite": litert_session}
        opener = _triton_session if path.is_dir() else openers.get(path.suffix, _onnx_session)
        try:
            self._session, metadata = opener(path, (NETWORK_INPUT, *RAW_OUTPUTS) if probe else ())
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            reason = f"its runtime cannot open it ({last_line(error)})"
            raise ModelFileError(str(path), reason, "export it anew") from None
        self.metadata = metadata
        self.card = ModelCard.from_json(metadata[METADATA_KEY], source=str(path))
        self.head = metadata.get("head", "raw")
        self.takes_pictures = metadata.get("preprocessing_inside", "false") == "true"
        arguments = ast.literal_eval(metadata.get("args", "{}"))
        self.batch = None if arguments.get("dynamic", True) else int(metadata["batch"])
        self.picture_hw: tuple[int, int] | None = None
        if "picture_hw" in metadata:
            height, width = json.loads(metadata["picture_hw"])
            self.picture_hw = (height, width)
        self._anchors = self.card.anchors_cxcywh()

    def faults(self, card: ModelCard) -> list[str]:
        """Where the files beside the graph, if there are any, contradict it or the model of a card; a line each."""
        return self._session.faults(card)

    def fitted(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """The pictures as the file's user would deliver them: all of one size, if it takes no other."""
        if self.picture_hw is None:
            yield from pictures
            return
        height, width = self.picture_hw
        for picture in pictures:
            fits = picture.shape[:2] == (height, width)
            yield picture if fits else np.asarray(Image.fromarray(picture).resize((width, height)))

    def see(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """Run the file on pictures [h, w, 3], in groups of the batch sizes it takes; one `Seen` for each, in order."""
        turn = 0
        waiting: list[Picture] = []
        for picture in pictures:
            if waiting and self.takes_pictures and waiting[0].shape != picture.shape:
                yield from self._group(waiting)
                waiting, turn = [], turn + 1
            waiting.append(picture)
            if len(waiting) == (self.batch or BATCHES[turn % len(BATCHES)]):
                yield from self._group(waiting)
                waiting, turn = [], turn + 1
        if waiting:
            yield from self._group(waiting)

    def _group(self, pictures: Sequence[Picture]) -> Iterator[Seen]:
        filled = [*pictures, *[pictures[-1]] * ((self.batch or 0) - len(pictures))]
        if self.takes_pictures:
            images: NDArray[Any] = np.stack(filled)
        else:
            images = np.stack([self.card.preprocess(picture)[0] for picture in filled])
        out = self._session.run(images)
        for place in range(len(pictures)):
            tensors = {name: out[name][place] for name in (NETWORK_INPUT, *RAW_OUTPUTS) if name in out}
            if not self.takes_pictures:
                tensors[NETWORK_INPUT] = images[place]
            yield Seen(self._read(out, place), tensors)

    def _read(self, out: dict[str, NDArray[Any]], place: int) -> Found:
        spec = self.card.postprocess
        if self.head == "raw":
            return self.expected(out["offsets"][place], out["logits"][place])
        if self.head == "decoded":
            return _suppressed(out["boxes_unit_xyxy"][place], out["scores"][place], spec)
        if self.head == "nms":
            rows = out["detections"][place][: out["count"][place].item()]
            return Found(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))
        if self.head == "frigate":
            rows = out["detection_out"][0, 0]
            rows = rows[rows[:, 0] == place]
            return Found(rows[:, 3:], rows[:, 2], rows[:, 1].astype(np.int64) - FRIGATE_LABEL_BASE)
        count = int(out["num_detections"][place])
        boxes = out["detection_boxes"][place][:count][:, [1, 0, 3, 2]]
        labels = out["detection_classes"][place][:count].astype(np.int64)
        return Found(boxes, out["detection_scores"][place][:count], labels)

    def expected(self, offsets: FloatArray, logits: FloatArray) -> Found:
        """What post-processing makes of the file's own raw predictions."""
        return Found(
            *postprocess_np(offsets, logits, self._anchors, variances=self.card.variances, spec=self.card.postprocess)
        )


class EagerReference:
    """The network that was exported, run by torch, with everything around it done by `multibox` itself.

    Args:
        detector: in evaluation mode.
        card: how it is fed and read.
    """

    def __init__(self, detector: Any, card: ModelCard) -> None:
        import torch

        self.card = card
        self._torch = torch
        self._detector = detector
        self._anchors = card.anchors_cxcywh()

    def see(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """One `Seen`, with tensors, for each picture [h, w, 3]."""
        for picture in pictures:
            images, _ = self.card.preprocess(picture)
            with self._torch.inference_mode():
                last = self._detector(self._torch.from_numpy(images[None]))[-1]
            offsets, logits = last.offsets[0].numpy(), last.logits[0].numpy()
            found = postprocess_np(
                offsets, logits, self._anchors, variances=self.card.variances, spec=self.card.postprocess
            )
            yield Seen(Found(*found), {NETWORK_INPUT: images, "offsets": offsets, "logits": logits})


def to_detections(found: Found, card: ModelCard, picture: Picture) -> Detections:
    """In pixels of the picture, with the model's classes."""
    size_hw = (picture.shape[0], picture.shape[1])
    boxes = card.preprocess.geometry(size_hw).to_picture(found.unit_xyxy)
    return Detections(boxes, found.labels, found.scores, card.class_map, size_hw)


def _suppressed(boxes: FloatArray, scores: FloatArray, spec: PostprocessSpec) -> Found:
    """Suppression of decoded boxes [A, 4] and scores [A, C], as `postprocess_np` does it."""
    flat = np.flatnonzero(scores > np.float32(spec.score_threshold))
    values = scores.ravel()[flat]
    order = np.argsort(-values, kind="stable")
    limit = FIRST_CANDIDATES
    while True:
        anchor, label = np.divmod(flat[order[:limit]], scores.shape[1])
        best = values[order[:limit]]
        if spec.top_k is not None:
            few = np.concatenate(
                [np.empty(0, np.int64), *(np.flatnonzero(label == c)[: spec.top_k] for c in np.unique(label))]
            )
            few.sort()
            anchor, label, best = anchor[few], label[few], best[few]
        groups = None if spec.class_agnostic else label
        kept = nms_np(boxes[anchor], best, nms_iou=spec.nms_iou, labels=groups)[: spec.max_detections]
        if len(kept) == spec.max_detections or limit >= len(order):
            return Found(boxes[anchor[kept]].clip(0, 1), best[kept], label[kept])
        limit *= 4


class _Onnx:
    def __init__(self, content: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = usable_cpus()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self.session.get_outputs()]

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(self._names, self.session.run(None, {"images": images}), strict=True))

    def faults(self, card: ModelCard) -> list[str]:
        return []


def _onnx_session(path: Path, probes: Sequence[str]) -> tuple[_Onnx, dict[str, str]]:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    made = {name for node in model.graph.node for name in node.output} - {o.name for o in model.graph.output}
    for name in probes:
        if name in made:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return _Onnx(model.SerializeToString() if probes else path.read_bytes()), metadata


def _triton_session(path: Path, probes: Sequence[str]) -> tuple[Session, dict[str, str]]:
    inner, metadata = _onnx_session(path / MODEL, probes)
    return Repository(path, inner.session, further=probes), metadata


class _OpenVino:
    def __init__(self, path: Path, probes: Sequence[str]) -> None:
        from multibox.inference.engines.openvino import compiled, read_metadata, shared_core

        import_quietly("openvino", purpose=f"checking {path.name}", extra="openvino")
        core = shared_core()
        model = core.read_model(path)
        self.metadata = read_metadata(model)
        present = {name for port in (*model.inputs, *model.outputs) for name in port.names}
        inside = {name for node in model.get_ops() for port in node.outputs() for name in port.names} - present
        for name in probes:
            if name in inside:
                model.add_outputs(name)
        self._names = [port.names for port in model.outputs]
        self._request = compiled(core, model).create_infer_request()

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        self._request.infer({"images": images})
        out: dict[str, NDArray[Any]] = {}
        for place, names in enumerate(self._names):
            value = np.array(self._request.get_output_tensor(place).data)
            out |= dict.fromkeys(names, value)
        return out

    def faults(self, card: ModelCard) -> list[str]:
        return []


def _openvino_session(path: Path, probes: Sequence[str]) -> tuple[Session, dict[str, str]]:
    session = _OpenVino(path, probes)
    return session, session.metadata
