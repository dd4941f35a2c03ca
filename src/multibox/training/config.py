"""Every option of a training run, typed and checked, from a recipe, a TOML file and `key=value` pairs."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from multibox.errors import MultiboxError, OptionError, did_you_mean
from multibox.training.augmentation import AugmentOptions

__all__ = [
    "DataOptions",
    "LossOptions",
    "ModelOptions",
    "OptimOptions",
    "RunOptions",
    "TrainConfig",
    "describe",
    "from_toml",
    "leaves",
    "merge",
    "to_toml",
]


def _within(owner: object, **limits: tuple[float, float]) -> None:
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        if not (math.isfinite(value) and low <= value <= high):
            above = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
            raise OptionError(f"{name} must be {above}, got {value!r}")


def _one_of(owner: object, **choices: Any) -> None:
    for name, allowed in choices.items():
        value, known = getattr(owner, name), get_args(allowed)
        if value not in known:
            raise OptionError(f"{name}={value!r}: {did_you_mean(str(value), map(str, known))}")


Difficult = Literal["train", "ignore"]
Cache = Literal["none", "ram", "disk"]


@dataclass(frozen=True)
class DataOptions:
    """What is learnt from.

    Args:
        data: a data set in any format that `multibox convert` reads.
        split: splits to train on, separated by commas; by default "train" where there is one, else everything that
            is not validated on.
        val_split: splits to validate on; by default "val" where there is one, else a part held out. "none": no
            validation, and the last weights are the best.
        val_fraction: share of the pictures held out when nothing else is there to validate on.
        format: of the data; recognised when left out.
        images: the folder of the pictures, for a lone COCO JSON or a table.
        classes: only these classes of the data, separated by commas; all when left out.
        difficult: whether objects marked difficult are learnt ("train") or are neither objects nor background
            ("ignore"). Crowds are always ignored.
        workers: processes that decode and augment; 0 does it in the main process.
        cache: keep decoded pictures in each worker's memory ("ram") or in one file beside the run ("disk").
        cache_gb: size at which the cache stops growing.
    """

    data: str = ""
    split: str = ""
    val_split: str = ""
    val_fraction: float = 0.1
    format: str = ""
    images: str = ""
    classes: str = ""
    difficult: Difficult = "train"
    workers: int = 1
    cache: Cache = "ram"
    cache_gb: float = 2.0

    def __post_init__(self) -> None:
        _within(self, val_fraction=(0, 0.9), workers=(0, 256), cache_gb=(0, math.inf))
        _one_of(self, difficult=Difficult, cache=Cache)


@dataclass(frozen=True)
class ModelOptions:
    """What is trained.

    Args:
        model: a shipped model's name or a `.safetensors` file to start from, or a builder of `multibox list` to start
            from random weights.
        imgsz: input size, one number or height x width ("320", "256x512"); the model's own when left out.
        anchors: default boxes: "keep" the model's, "fit" them to the data, or a file of `multibox anchors --save`.
        freeze: leading stages of the backbone that are not trained.
        freeze_norm: keep the statistics and factors of batch normalisation as they are.
        nms_iou: of the trained model's non-maximum suppression; the original model's when left out.
    """

    model: str = "ssdlite300-coco"
    imgsz: str = ""
    anchors: str = "keep"
    freeze: int = 0
    freeze_norm: bool = False
    nms_iou: float | None = None

    def __post_init__(self) -> None:
        _within(self, freeze=(0, math.inf))
        if self.nms_iou is not None:
            _within(self, nms_iou=(0, 1))
        if self.imgsz:
            self.size_hw()

    def size_hw(self) -> tuple[int, int] | None:
        """(height, width) asked for, or None."""
        if not self.imgsz:
            return None
        sides = re.fullmatch(r"(\d+)(?:\s*[x×,]\s*(\d+))?", self.imgsz)
        if sides is None or not 0 < int(sides[1]) <= 4096 or not 0 < int(sides[2] or 1) <= 4096:
            raise OptionError(f"imgsz={self.imgsz!r}: write one side (320) or height x width (256x512), up to 4096")
        return int(sides[1]), int(sides[2] or sides[1])


ClassLoss = Literal["mined", "focal"]
BoxLoss = Literal["smooth_l1", "giou", "ciou"]


@dataclass(frozen=True)
class LossOptions:
    """What is minimised; see `multibox.core.loss`.

    Args:
        class_loss: cross-entropy over the objects and the hardest background ("mined"), or focal loss over every
            default box ("focal", sigmoid models only).
        negative_ratio: background boxes for each matched one, when mined.
        focal_gamma: how much easy boxes are played down.
        focal_alpha: weight of objects against background.
        box_loss: smooth L1 on the offsets, or generalised / complete IoU of the decoded boxes.
        box_weight: of the box loss.
        match_iou: overlap from which a default box answers for an object.
    """

    class_loss: ClassLoss = "mined"
    negative_ratio: float = 3.0
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    box_loss: BoxLoss = "smooth_l1"
    box_weight: float = 1.0
    match_iou: float = 0.5

    def __post_init__(self) -> None:
        _one_of(self, class_loss=ClassLoss, box_loss=BoxLoss)
        _within(
            self,
            negative_ratio=(0, math.inf),
            focal_gamma=(0, 10),
            focal_alpha=(0, 1),
            box_weight=(0, math.inf),
            match_iou=(0.05, 0.95),
        )


Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "steps", "constant"]


@dataclass(frozen=True)
class OptimOptions:
    """How it is minimised.

    Args:
        epochs: passes over the training pictures.
        batch: pictures in a step, over all processes.
        accumulate: steps whose gradients are added up before the weights move.
        optimizer: "sgd" (with momentum) or "adamw".
        lr0: learning rate after the warm-up.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: of kernels; biases and normalisation have none.
        schedule: "cosine" down to lr0 · final_factor, "steps" as in the paper, or "constant".
        final_factor: last learning rate of the cosine, as a part of lr0.
        steps: parts of the run after which the learning rate is divided by ten ("0.667,0.833": the paper's 80k and
            100k of 120k).
        warmup: epochs in which the learning rate rises from near zero.
        backbone_lr: learning rate of the pretrained backbone, as a part of lr0.
        bias_lr: learning rate of biases, as a part of lr0 (the original trains them at 2).
        clip_norm: largest norm of the gradient; 0 for none.
        ema: decay of the running average of the weights, which is what is validated and saved; 0 for none.
    """

    epochs: int = 30
    batch: int = 16
    accumulate: int = 1
    optimizer: Optimizer = "sgd"
    lr0: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    final_factor: float = 0.01
    steps: str = "0.667,0.833"
    warmup: float = 1.0
    backbone_lr: float = 1.0
    bias_lr: float = 1.0
    clip_norm: float = 10.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        _one_of(self, optimizer=Optimizer, schedule=Schedule)
        _within(
            self,
            epochs=(1, 1e6),
            batch=(1, 1e6),
            accumulate=(1, 1e4),
            momentum=(0, 0.9999),
            weight_decay=(0, 1),
            final_factor=(0, 1),
            warmup=(0, 1e6),
            backbone_lr=(0, 100),
            bias_lr=(0, 100),
            clip_norm=(0, math.inf),
            ema=(0, 0.999999),
        )
        if not 0 < self.lr0 <= 100:
            raise OptionError(f"lr0 must be above 0 and at most 100, got {self.lr0!r}")
        self.step_parts()

    def step_parts(self) -> tuple[float, ...]:
        """`steps` as numbers."""
        try:
            parts = tuple(float(part) for part in self.steps.split(",") if part.strip())
        except ValueError:
            parts = (-1.0,)
        if any(not 0 < part < 1 for part in parts) or list(parts) != sorted(set(parts)):
            raise OptionError(f"steps={self.steps!r}: write rising parts of the run, as 0.667,0.833")
        return parts


Amp = Literal["none", "auto", "bf16", "fp16"]


@dataclass(frozen=True)
class RunOptions:
    """Where and how the run goes.

    Args:
        project: folder of run folders.
        name: of the run folder; numbered when it exists.
        exist_ok: write into an existing run folder.
        device: cpu, cuda, cuda:1 …
        seed: of everything random.
        deterministic: only operations that give the same bits again; slower on a GPU.
        amp: compute in half precision: bf16, fp16 (GPUs only), or bf16 where the processor has instructions for it
            ("auto"). Losses, averages and validation are in float32 always.
        compile: compile the network first (torch.compile).
        val_every: epochs between validations; the last epoch is always validated.
        patience: validations without a better one after which the run ends; 0 for never.
        save_every: seconds between saves of the state within an epoch; it is saved after every epoch anyway.
        tensorboard: write TensorBoard events into the run folder.
        plots: draw sample batches and the curves.
        quiet: print errors only.
    """

    project: str = "runs"
    name: str = "train"
    exist_ok: bool = False
    device: str = "cpu"
    seed: int = 0
    deterministic: bool = False
    amp: Amp = "none"
    compile: bool = False
    val_every: int = 1
    patience: int = 0
    save_every: float = 120.0
    tensorboard: bool = False
    plots: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        _one_of(self, amp=Amp)
        _within(self, seed=(0, 2**31), val_every=(1, 1e6), patience=(0, 1e6), save_every=(0, math.inf))


@dataclass(frozen=True)
class TrainConfig:
    """All options of a run, by section.

    Raises:
        OptionError: a value out of range, or options that contradict each other.
    """

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.run.amp == "fp16" and self.run.device == "cpu":
            raise OptionError("amp=fp16 needs a GPU; on a CPU use amp=bf16 or none")
        if self.run.patience and self.data.val_split == "none":
            raise OptionError("patience needs a validation; drop val_split=none or patience")
        if self.optim.warmup >= self.optim.epochs:
            raise OptionError(f"warmup={self.optim.warmup:g} epochs of {self.optim.epochs}; make it shorter")


class Leaf(typing.NamedTuple):
    """One option: where it is, of what type, with which default."""

    section: str
    name: str
    type: Any
    default: Any
    help: str


@cache
def leaves() -> dict[str, Leaf]:
    """Every option by its name, which is unique over all sections."""
    found: dict[str, Leaf] = {}
    for section in fields(TrainConfig):
        owner: Any = section.default_factory
        kinds, texts = typing.get_type_hints(owner), describe(owner)
        for item in fields(owner):
            assert item.name not in found, item.name
            default = getattr(owner(), item.name)
            found[item.name] = Leaf(section.name, item.name, kinds[item.name], default, texts[item.name])
    return found


def describe(owner: type) -> dict[str, str]:
    """The texts of the `Args` section of a class's docstring, by name, each on one line."""
    body = inspect.cleandoc(owner.__doc__ or "").partition("Args:\n")[2].split("\n\n")[0]
    out: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + body):
        names, _, text = entry.strip().partition(":")
        for name in filter(None, names.split(",")):
            out[name.strip()] = " ".join(text.split())
    return out


def merge(config: TrainConfig, options: Mapping[str, Any]) -> TrainConfig:
    """The configuration with options by name in place of its own; texts are read as the option's type.

    A warm-up that no option asks for is shortened in proportion where fewer epochs have no room for it.

    Raises:
        OptionError: an unknown option, or one that cannot be read or is out of range.
    """
    known = leaves()
    by_section: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        section, _, name = key.replace("-", "_").rpartition(".")
        if name not in known:
            raise OptionError(f"unknown option {key!r}; {did_you_mean(name, known)}")
        if section not in ("", known[name].section):
            raise OptionError(f"unknown option {key!r}; did you mean '{known[name].section}.{name}'?")
        by_section.setdefault(known[name].section, {})[name] = _read(known[name], value)
    optim = by_section.get("optim", {})
    if "warmup" not in optim and config.optim.warmup >= optim.get("epochs", config.optim.epochs):
        optim["warmup"] = config.optim.warmup * optim["epochs"] / config.optim.epochs
    parts = {section: _replaced(getattr(config, section), values) for section, values in by_section.items()}
    return replace(config, **parts)


def _replaced(section: Any, values: dict[str, Any]) -> Any:
    return dataclasses.replace(section, **values)


_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def _read(leaf: Leaf, value: Any) -> Any:
    kind = leaf.type
    if get_origin(kind) in (typing.Union, types.UnionType):
        if value is None or value == "":
            return None
        kind = next(a for a in get_args(kind) if a is not type(None))
    if get_origin(kind) is Literal or kind is str:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise OptionError(f"{leaf.name}={value!r}: expected a text")
        return str(value)
    expected, convert = _READERS[get_origin(kind) or kind]
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"{leaf.name}={value!r}: expected {expected}") from None


def _yes_or_no(value: Any) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = value.split(",") if value.strip() else ()
    if not isinstance(value, list | tuple):
        raise ValueError
    return tuple(_number(part) for part in value)


_READERS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", _yes_or_no),
    int: ("a whole number", _whole),
    float: ("a number", _number),
    tuple: ("numbers with commas", _numbers),
}


def from_toml(path: Path, *, base: TrainConfig | None = None) -> TrainConfig:
    """A configuration from a TOML file with a table for each section (or keys without tables).

    Raises:
        OptionError: no TOML, an unknown table or key, a value out of range; the message names the file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{path}: cannot be read as TOML ({error})") from None
    sections = {item.name for item in fields(TrainConfig)}
    options: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(value, dict):
            options[key] = value
            continue
        if key not in sections:
            raise OptionError(f"{path}: unknown table [{key}]; {did_you_mean(key, sections)}")
        for name, inner in value.items():
            leaf = leaves().get(name.replace("-", "_"))
            if leaf is not None and leaf.section != key:
                raise OptionError(f"{path}: {name} belongs into [{leaf.section}], not [{key}]")
            options[name] = inner
    try:
        return merge(base or TrainConfig(), options)
    except MultiboxError as error:
        raise OptionError(f"{path}: {error}") from None


def to_toml(config: TrainConfig) -> str:
    """Every option as TOML; `from_toml` reads it back."""
    lines: list[str] = []
    for section in fields(config):
        part = getattr(config, section.name)
        lines.append(f"[{section.name}]")
        for item in fields(part):
            value = getattr(part, item.name)
            lines.append(f"# {item.name}: none" if value is None else f"{item.name} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in escaped) + '"'
