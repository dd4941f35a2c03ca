"""What an export is asked to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multibox.errors import OptionError, did_you_mean
from multibox.export.formats import FORMATS, Format
from multibox.export.heads import HEADS
from multibox.export.layout import Layout
from multibox.export.verify.check import Tolerances
from multibox.spec.card import ModelCard

__all__ = ["ExportRequest"]


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
        builder_arguments: what the builder that `model` names is given.
        size_hw: input (height, width); the model's own when left out.
        conf, iou, max_det, agnostic_nms: of the in-graph suppression; the model's own when left out.
        output: the file, or folder of "triton"; named after the model when left out.
        data: a data set to compare and measure on, or a folder of pictures alone, whose truth then is what the model
            itself finds; int8 needs one.
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
    builder_arguments: Mapping[str, Any] = field(default_factory=dict)
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
        if self.format not in FORMATS:
            raise OptionError(f"unknown format {self.format!r}; {did_you_mean(self.format, FORMATS)}")
        if self.head not in HEADS:
            raise OptionError(f"unknown head {self.head!r}; {did_you_mean(self.head, HEADS)}")
        if self.batch is not None and self.batch < 1:
            raise OptionError(f"batch must be a whole number from 1, got {self.batch}")
        if self.dynamic and self.batch is not None:
            raise OptionError(f"dynamic=true leaves the batch free, batch={self.batch} fixes it; give one of them")
        row, head = self.row, HEADS[self.head]
        if head.single and (self.dynamic or (self.batch or 1) != 1):
            raise OptionError(f"head={self.head} has room for one picture only; leave out batch and dynamic")
        if row.int8 and self.data is None:
            raise OptionError(f"format={self.format} measures its scales and its cost on pictures; give data=DATASET")
        if (self.calibrate or self.calibrate_split) and not row.int8:
            raise OptionError(f"calibrate is for int8, not for format={self.format}")
        if self.head not in row.heads:
            known = ", ".join(row.heads)
            raise OptionError(f"format={self.format} has no head={self.head}; use one of {known}, or format=onnx")
        if row.fixed_batch and self.dynamic:
            raise OptionError(f"format={self.format} has fixed shapes; leave out dynamic, or give batch=N")
        if self.head in row.one_picture and (self.fixed_batch or 1) != 1:
            raise OptionError(f"head={self.head} of format={self.format} takes one picture at once; leave out batch")
        if self.head in row.by_class and self.agnostic_nms:
            raise OptionError(
                f"head={self.head} of format={self.format} suppresses within classes only; leave out agnostic-nms, or "
                "use head=decoded"
            )
        self._require_output(row)

    def _require_output(self, row: Format) -> None:
        if self.output is None:
            return
        if not row.suffix and (
            not self.output.name or self.output.suffix in {other.suffix for other in FORMATS.values()} - {""}
        ):
            raise OptionError(
                f"format={self.format} is written to a folder, not {str(self.output)!r}; give output=NAME"
            )
        if row.suffix and self.output.suffix != row.suffix:
            raise OptionError(f"format={self.format} is written to a {row.suffix} file, not {self.output.name!r}")

    @property
    def row(self) -> Format:
        """Of the format."""
        return FORMATS[self.format]

    @property
    def fixed_batch(self) -> int | None:
        """Pictures at once; None when free."""
        if self.batch is not None or HEADS[self.head].single or self.dynamic is False or self.row.fixed_batch:
            return self.batch or 1
        return None

    def layout(self, card: ModelCard) -> Layout:
        """What is put around the network of a card.

        Frigate and TensorFlow Lite deliver pictures of the network's size.
        """
        head = HEADS[self.head]
        pictures = head.pictures if self.preprocess is None else self.preprocess
        own_size = pictures and (head.single or self.row.fixed_batch)
        return Layout(self.head, self.fixed_batch, pictures, card.preprocess.size_hw if own_size else None)

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
        parts += ["int8"] if self.row.int8 else []
        return Path("-".join(parts) + self.row.suffix)

    def asked(self, card: ModelCard) -> ModelCard:
        """The card with the suppression that was asked for.

        Raises:
            OptionError: the model's preprocessing cannot be done inside a file.
        """
        rule, layout = card.preprocess, self.layout(card)
        inside = (rule.resize, rule.interpolation, rule.rounding) == ("stretch", "bilinear", False)
        if layout.preprocess and layout.picture_hw is None and not inside:
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
