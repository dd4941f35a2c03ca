"""What an export is asked to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multibox.errors import OptionError, did_you_mean
from multibox.export.heads import HEADS
from multibox.export.litert_heads import WRITERS
from multibox.export.verify.check import Tolerances
from multibox.spec.card import ModelCard

__all__ = ["FORMATS", "ExportRequest"]

FORMATS = {
    "onnx": "one .onnx file",
    "openvino": "OpenVINO's .xml with its .bin",
    "onnx-int8": "a quantised .onnx file",
    "openvino-int8": "a quantised OpenVINO .xml with its .bin",
    "litert": "one .tflite file of a fixed batch, for LiteRT (TensorFlow Lite)",
    "litert-int8": "a quantised .tflite file",
    "triton": "a model of a Triton repository: a folder with config.pbtxt, 1/model.onnx and labels.txt",
}
TRITON_HEADS = ("raw", "decoded", "nms")


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
        output: the file, or folder of "triton"; named after the model when left out.
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
        if self.is_litert:
            self._require_litert()
        if self.format == "triton":
            self._require_triton()
        elif self.output is not None and self.output.suffix != self.suffix:
            raise OptionError(f"format={self.format} is written to a {self.suffix} file, not {self.output.name!r}")

    def _require_triton(self) -> None:
        if self.head not in TRITON_HEADS:
            raise OptionError(f"format=triton has the heads {', '.join(TRITON_HEADS)}, not {self.head}; use head=nms")
        if self.output is not None and (self.output.suffix in (".onnx", ".xml", ".tflite") or not self.output.name):
            raise OptionError(f"format=triton is written to a folder, not {str(self.output)!r}; give output=NAME")

    def _require_litert(self) -> None:
        if self.head not in WRITERS:
            known = ", ".join(WRITERS)
            raise OptionError(f"format={self.format} has no head={self.head}; use one of {known}, or format=onnx")
        if self.dynamic:
            raise OptionError(f"format={self.format} has fixed shapes; leave out dynamic, or give batch=N")
        if self.head == "tflite4" and (self.fixed_batch or 1) != 1:
            raise OptionError(f"head=tflite4 of format={self.format} takes one picture at once; leave out batch")
        if self.head == "tflite4" and self.agnostic_nms:
            raise OptionError(
                f"head=tflite4 of format={self.format} suppresses within classes only; leave out agnostic-nms, or use "
                "head=decoded"
            )

    @property
    def is_int8(self) -> bool:
        """Whether the file is quantised."""
        return self.format.endswith("-int8")

    @property
    def suffix(self) -> str:
        """Of the file; none of a folder."""
        if self.format == "triton":
            return ""
        if self.is_litert:
            return ".tflite"
        return ".xml" if self.format.startswith("openvino") else ".onnx"

    @property
    def is_litert(self) -> bool:
        """Whether the file is a `.tflite` file."""
        return self.format.startswith("litert")

    @property
    def fixed_batch(self) -> int | None:
        """Pictures at once; None when free."""
        if self.batch is not None or HEADS[self.head].single or self.dynamic is False or self.is_litert:
            return self.batch or 1
        return None

    @property
    def takes_pictures(self) -> bool:
        """Whether preprocessing is inside."""
        return self.head == "frigate" if self.preprocess is None else self.preprocess

    def picture_hw(self, card: ModelCard) -> tuple[int, int] | None:
        """(height, width) of the pictures where the file takes only those of the network's size.

        Frigate and TensorFlow Lite deliver such.
        """
        own_size = self.takes_pictures and (HEADS[self.head].single or self.is_litert)
        return card.preprocess.size_hw if own_size else None

    @property
    def batch_words(self) -> str:
        """The batch for a message."""
        return "any batch" if self.fixed_batch is None else f"batch {self.fixed_batch}"

    def file_for(self, card: ModelCard) -> Path:
        """The file to write, in the current folder unless `output` says where."""
        if self.output is not None:
            return self.output
        parts = [Path(self.model).stem if Path(self.model).suffix else card.name]
        parts += [self.head] if self.head != "raw" else []
        parts += ["int8"] if self.is_int8 else []
        return Path("-".join(parts) + self.suffix)

    def asked(self, card: ModelCard) -> ModelCard:
        """The card with the suppression that was asked for.

        Raises:
            OptionError: the model's preprocessing cannot be done inside a file.
        """
        rule = card.preprocess
        inside = (rule.resize, rule.interpolation, rule.rounding) == ("stretch", "bilinear", False)
        if self.takes_pictures and self.picture_hw(card) is None and not inside:
            raise OptionError(
                f"{card.name} wants pictures {rule.describe()}; a file can only stretch them bilinearly without "
                "rounding: export with preprocess=false and prepare pictures outside"
            )
        values: dict[str, Any] = {
            "score_threshold": self.conf,
            "nms_iou": self.iou,
            "max_detections": self.max_det,
            "class_agnostic": self.agnostic_nms,
        }
        spec = replace(card.postprocess, **{key: value for key, value in values.items() if value is not None})
        return replace(card, postprocess=spec)
