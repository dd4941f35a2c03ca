"""From a request to a file that has been proven, or refused."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multibox.card import ModelCard
from multibox.data import Dataset, read_dataset
from multibox.data.doctor.pictures import split_role
from multibox.errors import ContractError, MissingDependencyError, OptionError, did_you_mean
from multibox.evaluation import EvaluationSet
from multibox.export.heads import FRIGATE_LABEL_BASE, HEADS, Head
from multibox.export.onnx import compose, export_metadata, network_graph, write_onnx
from multibox.export.openvino import convert, write_openvino
from multibox.export.quantize import Quantizer, noise_shares
from multibox.export.source import open_source
from multibox.postprocess import PostprocessSpec
from multibox.quiet import import_quietly
from multibox.verification.accuracy import cost, predictions
from multibox.verification.artefact import Artefact, EagerReference
from multibox.verification.check import Report, Tolerances, verify
from multibox.verification.pictures import drawn_pictures, evenly, read_pictures

__all__ = ["FORMATS", "ExportRequest", "Outcome", "export_verified"]

FORMATS = {
    "onnx": "one .onnx file",
    "openvino": "OpenVINO's .xml with its .bin",
    "onnx-int8": "a quantised .onnx file",
    "openvino-int8": "a quantised OpenVINO .xml with its .bin",
}
COMPARED = 16  # pictures of the data set that are compared number by number
CALIBRATED = 128  # pictures at most that set the scales of int8
CALIBRATION_STRIDE = 4  # of a data set without splits, every fourth picture calibrates and the others measure
SENSITIVITY_PICTURES = 4
LARGEST_SHARE = 0.2  # of the noise of all layers together; one with more stays in float32 from the start

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how much it may differ; checked on construction.

    Args:
        model: a shipped model, a `.safetensors` file or a builder's name.
        format: a key of `FORMATS`.
        head: a key of `multibox.export.heads.HEADS`.
        batch: pictures at once.
        dynamic: whether the batch is free. Left out: free unless `batch` is given or the head takes one picture.
        preprocess: take 8-bit pictures and prepare them inside. Left out: only for the head "frigate".
        size_hw: input (height, width); the model's own when left out.
        conf, iou, max_det, agnostic_nms: of the in-graph suppression; the model's own when left out.
        output: the file; named after the model when left out.
        data: a data set to compare and measure on; int8 needs one.
        split: of the data set; left out, its validation or test part, or all.
        calibrate, calibrate_split: where int8 scales are measured; left out, the data set's training part, or every
            fourth of its pictures, which then are not measured on.
        limit: pictures to measure on at most.
        tolerances: see there.

    Raises:
        OptionError: a value that is unknown, or contradicts another.
    """

    model: str
    format: str = "onnx"
    head: str = "raw"
    batch: int | None = None
    dynamic: bool | None = None
    preprocess: bool | None = None
    size_hw: tuple[int, int] | None = None
    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    agnostic_nms: bool | None = None
    output: Path | None = None
    data: str | None = None
    split: str | None = None
    calibrate: str | None = None
    calibrate_split: str | None = None
    limit: int = 500
    tolerances: Tolerances = field(default_factory=Tolerances)

    def __post_init__(self) -> None:
        for name, known in (("format", FORMATS), ("head", HEADS)):
            value = getattr(self, name)
            if value not in known:
                raise OptionError(f"unknown {name} {value!r}; {did_you_mean(value, known)}")
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"batch must be a whole number from 1, got {self.batch}")
        if self.dynamic and self.batch is not None:
            raise OptionError(f"dynamic=true leaves the batch free, batch={self.batch} fixes it; give one of them")
        if HEADS[self.head].single and (self.dynamic or (self.batch or 1) != 1):
            raise OptionError(f"head={self.head} has room for one picture only; leave out batch and dynamic")
        if self.is_int8 and self.data is None:
            raise OptionError(f"format={self.format} measures its scales and its cost on pictures; give data=DATASET")
        if (self.calibrate or self.calibrate_split) and not self.is_int8:
            raise OptionError(f"calibrate is for int8, not for format={self.format}")
        if self.output is not None and self.output.suffix != self.suffix:
            raise OptionError(f"format={self.format} is written to a {self.suffix} file, not {self.output.name!r}")

    @property
    def is_int8(self) -> bool:
        """Whether the file is quantised."""
        return self.format.endswith("-int8")

    @property
    def suffix(self) -> str:
        """Of the file."""
        return ".xml" if self.format.startswith("openvino") else ".onnx"

    @property
    def fixed_batch(self) -> int | None:
        """Pictures at once; None when free."""
        if self.batch is not None or HEADS[self.head].single or self.dynamic is False:
            return self.batch or 1
        return None

    @property
    def takes_pictures(self) -> bool:
        """Whether preprocessing is inside."""
        return self.head == "frigate" if self.preprocess is None else self.preprocess


@dataclass(frozen=True)
class Outcome:
    """What was written: the file (renamed if it was refused), its report, and what the check found."""

    path: Path
    report_path: Path
    report: Report


def export_verified(request: ExportRequest, *, say: Say = lambda text: None) -> Outcome:
    """Export, run what was written, and compare it with its source; a file that fails is renamed to NAME.rejected.

    Raises:
        MultiboxError: the source cannot be opened, a package is missing, the data cannot be read.
    """
    if request.suffix == ".xml":
        import_quietly("openvino", purpose="exporting to OpenVINO", extra="openvino")
    if request.format == "openvino-int8" and importlib.util.find_spec("nncf") is None:
        raise MissingDependencyError("nncf", "quantising for OpenVINO", "quantize")
    detector, card = open_source(request.model, size_hw=request.size_hw)
    card = replace(card, postprocess=_asked(card.postprocess, request))
    data = None if request.data is None else _measured(request)
    path = request.output or Path(_name(request, card))
    head = HEADS[request.head]
    say(f"writing {path}: {card.name}, head {head.name}, {_batch_words(request)}")
    network = network_graph(detector, card, batch=request.fixed_batch)
    metadata = export_metadata(
        card,
        head=head,
        batch=request.fixed_batch,
        preprocess=request.takes_pictures,
        picture_hw=card.preprocess.size_hw if _only_network_size(request) else None,
        precision="int8" if request.is_int8 else "float32",
    )
    reference, quantisation = None, {}
    if request.is_int8:
        assert data is not None
        work = _Int8(request, detector, card, network, data, say)
        reference, quantisation = work.reference, work.write(path, head, metadata)
    else:
        _write(_composed(network, card, head, request), path, metadata)
    if head.name == "frigate":
        write_frigate_labels(path.with_suffix(".labels.txt"), card)
    pictures = drawn_pictures()
    if data is not None:
        pictures = read_pictures(data.measure, evenly(len(data.measure), COMPARED)) + pictures
    say(f"checking {path} on {len(pictures)} pictures" + ("" if data is None else f" and {len(data.measure)} for AP"))
    report = verify(
        path,
        detector,
        card,
        pictures,
        tolerances=request.tolerances,
        dataset=None if data is None else data.measure,
        reference=reference,
    )
    report.quantisation = quantisation
    if data is not None:
        report.notes += data.notes
    return _settled(path, report)


def _settled(path: Path, report: Report) -> Outcome:
    """Rename what failed, and write the report."""
    report_path = path.with_suffix(path.suffix + ".report.json")
    report.write(report_path)
    rejected = path.with_name(path.name + ".rejected")
    rejected.unlink(missing_ok=True)
    if report.passed:
        return Outcome(path, report_path, report)
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        weights.replace(weights.with_name(weights.name + ".rejected"))
    path.replace(rejected)
    return Outcome(rejected, report_path, report)


def write_frigate_labels(path: Path, card: ModelCard) -> None:
    """The label file that goes with the head "frigate": a number and a name a line, background first."""
    rows = ["background", *card.class_map.names]
    lines = [f"{number}  {' '.join(name.split())}\n" for number, name in enumerate(rows, FRIGATE_LABEL_BASE - 1)]
    path.write_text("".join(lines), encoding="utf-8")


def _asked(spec: PostprocessSpec, request: ExportRequest) -> PostprocessSpec:
    values: dict[str, Any] = {
        "score_threshold": request.conf,
        "nms_iou": request.iou,
        "max_detections": request.max_det,
        "class_agnostic": request.agnostic_nms,
    }
    return replace(spec, **{key: value for key, value in values.items() if value is not None})


def _name(request: ExportRequest, card: ModelCard) -> str:
    parts = [Path(request.model).stem if Path(request.model).suffix else card.name]
    parts += [request.head] if request.head != "raw" else []
    parts += ["int8"] if request.is_int8 else []
    return "-".join(parts) + request.suffix


def _batch_words(request: ExportRequest) -> str:
    return "any batch" if request.fixed_batch is None else f"batch {request.fixed_batch}"


def _only_network_size(request: ExportRequest) -> bool:
    """Whether the file takes pictures of the network's own size only, as Frigate delivers them."""
    return request.takes_pictures and HEADS[request.head].single


def _composed(network: Any, card: ModelCard, head: Head, request: ExportRequest) -> Any:
    return compose(
        network,
        card,
        head=head,
        batch=request.fixed_batch,
        preprocess=request.takes_pictures,
        picture_hw=card.preprocess.size_hw if _only_network_size(request) else None,
    )


def _write(model: Any, path: Path, metadata: dict[str, str]) -> None:
    if path.suffix == ".xml":
        write_openvino(convert(model), path, metadata)
    else:
        write_onnx(model, path, metadata)


@dataclass(frozen=True)
class _Data:
    """Pictures to measure on and, for int8, others to calibrate on."""

    measure: Dataset
    calibrate: Dataset
    notes: list[str]


def _measured(request: ExportRequest) -> _Data:
    assert request.data is not None
    everything = read_dataset(request.data)
    roles = {split_role(name): name for name in everything.splits}
    split = request.split or next((roles[role] for role in ("val", "test") if role in roles), None)
    measure = everything if split is None else everything.split(split)
    notes = []
    if request.calibrate is not None or request.calibrate_split is not None:
        other = read_dataset(request.calibrate or request.data, split=request.calibrate_split)
        source = f"{request.calibrate or request.data}" + (
            f", split {request.calibrate_split}" if request.calibrate_split else ""
        )
    elif "train" in roles and roles["train"] != split and split is not None:
        other, source = everything.split(roles["train"]), f"{request.data}, split {roles['train']}"
    else:
        chosen = np.arange(len(measure)) % CALIBRATION_STRIDE == 0
        other, source = (
            measure.select(np.flatnonzero(chosen)),
            f"every {CALIBRATION_STRIDE}th picture of {request.data}",
        )
        if request.is_int8:
            measure = measure.select(np.flatnonzero(~chosen))
    if request.is_int8:
        shared = _paths(measure) & _paths(other)
        if shared:
            raise OptionError(
                f"{len(shared)} pictures would both set the scales and measure the cost ({sorted(shared)[0]}); "
                "calibrate on others: calibrate=DATASET or calibrate_split=NAME"
            )
        notes.append(f"calibrated on {min(len(other), CALIBRATED)} pictures of {source}")
    if len(measure) > request.limit:
        notes.append(f"measured on {request.limit} of {len(measure)} pictures, evenly spread")
        measure = measure.select(evenly(len(measure), request.limit))
    if not len(measure):
        raise ContractError(f"{request.data}: no pictures to measure on; check the split")
    return _Data(measure, other, notes)


def _paths(dataset: Dataset) -> set[str]:
    return {str(dataset.picture_path(index).resolve()) for index in range(len(dataset))}


class _Int8:
    """Quantise, measure, and give layers back to float32 until the cost is allowed."""

    def __init__(
        self, request: ExportRequest, detector: Any, card: ModelCard, network: Any, data: _Data, say: Say
    ) -> None:
        self._request, self._card, self._network, self._data, self._say = request, card, network, data, say
        indexes = evenly(len(data.calibrate), CALIBRATED)
        self._pictures = read_pictures(data.calibrate, indexes)
        self._inputs = [card.preprocess(picture)[0] for picture in self._pictures]
        say(f"measuring scales on {len(self._inputs)} pictures")
        batch = request.fixed_batch
        self._free = network if batch in (None, 1) else network_graph(detector, card)
        self._quantizer = Quantizer(self._free, self._inputs)
        self.reference: EvaluationSet = predictions(
            EagerReference(detector, card).see, card, data.measure, engine="torch", name="network"
        )

    def write(self, path: Path, head: Head, metadata: dict[str, str]) -> dict[str, Any]:
        """Write the file; what was done for the report."""
        self._say("measuring every layer's share of the rounding noise")
        ranking = self._quantizer.sensitivity(self._inputs[:SENSITIVITY_PICTURES])
        shares = noise_shares(ranking)
        kept = [row.node for row, share in zip(ranking, shares, strict=True) if share > LARGEST_SHARE]
        trials: list[dict[str, Any]] = []
        limit = self._request.tolerances.max_drop
        while True:
            drops = self._drops(kept)
            trials.append({"float_layers": [self._quantizer.layer_of(node) for node in kept], **drops})
            self._say(
                f"int8 with {len(kept)} layers given back: AP50 falls by {drops['ap50']:.4f}, AP by {drops['ap']:.4f}"
            )
            if max(drops.values()) <= limit or len(kept) == len(self._quantizer.layers):
                break
            kept = [row.node for row in ranking[: 2 * max(1, len(kept))]]
        self._write_one(path, kept, head, metadata, final=True)
        return {
            "engine": "nncf" if path.suffix == ".xml" else "onnxruntime.quantization",
            "calibration_pictures": len(self._inputs),
            "float_layers": [self._quantizer.layer_of(node) for node in (*self._quantizer.always_float, *kept)],
            "int8_layers": len(self._quantizer.layers) - len(kept),
            "trials": trials,
            "sensitivity": [
                {"layer": row.layer, "snr_db": round(row.snr_db, 2), "noise_share": round(share, 4)}
                for row, share in zip(ranking, shares, strict=True)
            ],
            "selection": "layers are chosen by their noise on calibration pictures, their number by AP on the "
            "measured pictures",
        }

    def _drops(self, kept: Sequence[str]) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / f"trial{self._request.suffix}"
            metadata = export_metadata(self._card, head=HEADS["raw"], batch=None, preprocess=False, precision="int8")
            self._write_one(trial, kept, HEADS["raw"], metadata, final=False)
            artefact = Artefact(trial)
            after = predictions(artefact.see, artefact.card, self._data.measure, engine="int8", name="int8")
            found = cost(self.reference, after, resamples=1)
        return {metric: found.drop(metric) for metric in ("ap50", "ap")}

    def _write_one(self, path: Path, kept: Sequence[str], head: Head, metadata: dict[str, str], *, final: bool) -> None:
        request, card = self._request, self._card
        if path.suffix == ".onnx":
            quantised = self._quantizer.quantised(keep_float=kept)
            if not final:
                write_onnx(quantised, path, metadata)
                return
            if self._free is not self._network:
                quantised = _with_batch(quantised, request.fixed_batch)
            write_onnx(_composed(quantised, card, head, request), path, metadata)
            return
        from multibox.export.quantize_openvino import quantise_openvino

        model = convert(_composed(self._network, card, head, request) if final else self._free)
        always = [*self._quantizer.always_float, *kept]
        inputs: list[NDArray[Any]] = [image[None] for image in self._inputs]
        if final and request.takes_pictures and _only_network_size(request):
            inputs = [_at(picture, card.preprocess.size_hw)[None] for picture in self._pictures]
        elif final and request.takes_pictures:
            inputs = [picture[None] for picture in self._pictures]
        if final and (request.fixed_batch or 1) > 1:
            inputs = [np.repeat(image, request.fixed_batch or 1, axis=0) for image in inputs]
        write_openvino(quantise_openvino(model, inputs, keep_float=always), path, metadata)


def _at(picture: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size_hw[1], size_hw[0])))


def _with_batch(model: Any, batch: int | None) -> Any:
    """A graph with a free batch, pinned to one."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch or 1
    del model.graph.value_info[:]
    return model
