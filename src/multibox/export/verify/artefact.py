"""An exported file as its users run it, whatever its head, and the network it must agree with."""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ContractError, ImageError
from multibox.export.heads import FRIGATE_LABEL_BASE, HEADS, RAW_OUTPUTS
from multibox.export.layout import NETWORK_INPUT
from multibox.export.verify.runners import RunFailedError, open_runner
from multibox.export.verify.samples import resized_to
from multibox.inference.engines.torch import TorchEngine
from multibox.pictures.read import read_picture
from multibox.spec.card import METADATA_KEY, ModelCard
from multibox.spec.detections import Detections
from multibox.spec.options import PictureOptions
from multibox.spec.pipeline import Pipeline, Prepared

__all__ = ["Artefact", "Checked", "EagerReference", "Seen"]

Picture = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
BATCHES = (1, 3, 2)  # sizes of the groups that a file with a free batch is run on, in turn
READ_AT_ONCE = sum(BATCHES)


@dataclass(frozen=True)
class Seen:
    """One picture: what was found in it, best first, and the tensors on the way by name where they were asked for.

    `from_raw` is what post-processing makes of the raw predictions, where a file gives both them and its detections.
    """

    found: Detections
    tensors: dict[str, FloatArray] = field(default_factory=dict)
    from_raw: Detections | None = None


class Checked(ABC):
    """One side of the comparison. It is a `multibox.inference.predictor.Predictor` with the thresholds of its card.

    Args:
        card: how it is fed and read.
        engine: what computes, for reports.
        picture_hw: the one size (height, width) in which pictures are delivered to it; any when left out.
    """

    def __init__(self, card: ModelCard, engine: str, picture_hw: tuple[int, int] | None) -> None:
        self.card, self.picture_hw = card, picture_hw
        self.runs_on = {"engine": engine, "device": "cpu"}
        self._pipeline = Pipeline(card)
        spec = card.postprocess
        self.options = PictureOptions(
            conf=spec.score_threshold,
            iou=spec.nms_iou,
            max_det=spec.max_detections,
            agnostic_nms=spec.class_agnostic,
        )

    @abstractmethod
    def see(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """One `Seen` for each picture [h, w, 3], in order; boxes are in pixels of that picture."""

    def outcomes(self, pictures: Iterable[Any], options: PictureOptions) -> Iterator[Detections | ImageError]:
        """See `Predictor`. Of the options only the classes are obeyed: the thresholds are inside the file."""
        classes = options.selected(self.card.class_map)
        waiting = iter(pictures)
        while several := [_read(picture) for picture in islice(waiting, READ_AT_ONCE)]:
            seen = self.see(picture for picture in several if not isinstance(picture, ImageError))
            for picture in several:
                if isinstance(picture, ImageError):
                    yield picture
                    continue
                found = next(seen).found
                yield found if classes is None else found[np.isin(found.labels, classes)]

    def _finished(self, offsets: FloatArray, logits: FloatArray, prepared: Prepared) -> Detections:
        return self._pipeline.finish(offsets, logits, prepared, self.options)

    def _delivered(self, picture: Picture) -> tuple[Picture, Prepared]:
        """A picture in the size in which it is delivered, and prepared; the way back leads to the picture itself."""
        (delivered,) = resized_to([picture], self.picture_hw)
        prepared = self._pipeline.prepare(delivered)
        height, width = picture.shape[:2]
        return delivered, prepared._replace(geometry=replace(prepared.geometry, picture_size_hw=(height, width)))


def _read(picture: Any) -> Picture | ImageError:
    try:
        return np.asarray(read_picture(picture))
    except ImageError as error:
        return error


class Artefact(Checked):
    """An exported file, or folder of a Triton repository; all it needs to be fed and read is in its own metadata.

    Args:
        path: the `.onnx`, `.xml` or `.tflite` file, or the folder.
        probe: also return the tensors on the way (the network's input after in-graph preprocessing, and the raw
            predictions). The graph that runs is then a copy with these as further outputs.

    Raises:
        ModelFileError: the runtime cannot open it, or it has no metadata.
    """

    def __init__(self, path: Path, *, probe: bool = False) -> None:
        self._runner = open_runner(path, (NETWORK_INPUT, *RAW_OUTPUTS) if probe else ())
        metadata = self.metadata = self._runner.metadata
        picture_hw = None
        if "picture_hw" in metadata:
            height, width = json.loads(metadata["picture_hw"])
            picture_hw = (height, width)
        super().__init__(ModelCard.from_json(metadata[METADATA_KEY], source=str(path)), path.suffix, picture_hw)
        self.head = metadata.get("head", "raw")
        self.takes_pictures = metadata.get("preprocessing_inside", "false") == "true"
        arguments = ast.literal_eval(metadata.get("args", "{}"))
        self.batch = None if arguments.get("dynamic", True) else int(metadata["batch"])

    def faults(self, card: ModelCard) -> list[str]:
        """Where the files beside the graph, if there are any, contradict it or the model of a card; a line each."""
        return self._runner.faults(card)

    def see(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """See the base class; the file is run on groups of the batch sizes it takes."""
        turn = 0
        waiting: list[tuple[Picture, Prepared]] = []
        for picture in pictures:
            entry = self._delivered(picture)
            if waiting and self.takes_pictures and waiting[0][0].shape != entry[0].shape:
                yield from self._group(waiting)
                waiting, turn = [], turn + 1
            waiting.append(entry)
            if len(waiting) == (self.batch or BATCHES[turn % len(BATCHES)]):
                yield from self._group(waiting)
                waiting, turn = [], turn + 1
        if waiting:
            yield from self._group(waiting)

    def _group(self, entries: Sequence[tuple[Picture, Prepared]]) -> Iterator[Seen]:
        filled = [*entries, *[entries[-1]] * ((self.batch or 0) - len(entries))]
        images: NDArray[Any] = np.stack(
            [picture if self.takes_pictures else prepared.tensor for picture, prepared in filled]
        )
        out = self._runner.run(images)
        self._require_outputs(out, len(images))
        for place, (_, prepared) in enumerate(entries):
            tensors = {name: out[name][place] for name in (NETWORK_INPUT, *RAW_OUTPUTS) if name in out}
            if not self.takes_pictures:
                tensors[NETWORK_INPUT] = prepared.tensor
            from_raw = None
            if self.head != "raw" and set(RAW_OUTPUTS) <= set(out):
                # From the same run: a quantised graph that shows more outputs may round elsewhere.
                from_raw = self._finished(out["offsets"][place], out["logits"][place], prepared)
            yield Seen(self._found(out, place, prepared), tensors, from_raw)

    def _require_outputs(self, out: dict[str, NDArray[Any]], batch: int) -> None:
        for name, (_, shape) in HEADS[self.head].shapes(self.card, batch).items():
            if name not in out:
                raise RunFailedError(f"there is no output {name!r}")
            if list(out[name].shape) != shape:
                raise RunFailedError(f"output {name!r} is {list(out[name].shape)} instead of {shape}")
        for name, values in out.items():
            if not np.isfinite(values).all():
                raise RunFailedError(f"output {name!r} holds values that are not finite")

    def _found(self, out: dict[str, NDArray[Any]], place: int, prepared: Prepared) -> Detections:
        """The detections of one picture, read as the file's head wants to be read."""
        if self.head == "raw":
            return self._finished(out["offsets"][place], out["logits"][place], prepared)
        if self.head == "decoded":
            boxes, scores = out["boxes_unit_xyxy"][place], out["scores"][place]
            return self._pipeline.finish_decoded(boxes, scores, prepared, self.options)
        try:
            return self._pipeline.located(*_rows(self.head, out, place), prepared.geometry)
        except ContractError as error:
            raise RunFailedError(f"its detections cannot be: {error}") from error


def _rows(
    head: str, out: dict[str, NDArray[Any]], place: int
) -> tuple[FloatArray, NDArray[np.float32], NDArray[np.int64]]:
    """Boxes unit xyxy [N, 4], scores [N] and labels [N] of one picture, from a head that suppresses."""
    if head == "nms":
        rows = out["detections"][place][: out["count"][place].item()]
        return rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
    if head == "frigate":
        rows = out["detection_out"][0, 0]
        rows = rows[rows[:, 0] == place]
        return rows[:, 3:], rows[:, 2], rows[:, 1].astype(np.int64) - FRIGATE_LABEL_BASE
    count = int(out["num_detections"][place])
    boxes = out["detection_boxes"][place][:count][:, [1, 0, 3, 2]]
    return boxes, out["detection_scores"][place][:count], out["detection_classes"][place][:count].astype(np.int64)


class EagerReference(Checked):
    """The network that was exported, run by torch, with everything around it done by `multibox` itself.

    Args:
        detector: in evaluation mode.
        card: how it is fed and read.
        picture_hw: as in `Checked`.
    """

    def __init__(self, detector: Any, card: ModelCard, *, picture_hw: tuple[int, int] | None = None) -> None:
        super().__init__(card, "torch", picture_hw)
        self._engine = TorchEngine(detector, card)

    def see(self, pictures: Iterable[Picture]) -> Iterator[Seen]:
        """See the base class; with tensors."""
        for picture in pictures:
            _, prepared = self._delivered(picture)
            offsets, logits = (part[0] for part in self._engine.run(prepared.tensor[None]))
            tensors = {NETWORK_INPUT: prepared.tensor, "offsets": offsets, "logits": logits}
            yield Seen(self._finished(offsets, logits, prepared), tensors)
