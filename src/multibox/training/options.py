"""Every option of a training run, by section."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from multibox.errors import OptionError
from multibox.spec.preprocess import parse_size_hw
from multibox.training.option_types import OptionSection, Within

__all__ = ["AugmentOptions", "DataOptions", "LossOptions", "ModelOptions", "OptimOptions", "RunOptions"]

Share = Annotated[float, Within(0, 1)]
Probability = Annotated[float, Within(0, 1, "a probability; 0 turns it off")]
Amount = Annotated[float, Within(0)]
Count = Annotated[int, Within(1, 1e6)]


@dataclass(frozen=True)
class DataOptions(OptionSection):
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
    val_fraction: Annotated[float, Within(0, 0.9)] = 0.1
    format: str = ""
    images: str = ""
    classes: str = ""
    difficult: Literal["train", "ignore"] = "train"
    workers: Annotated[int, Within(0, 256)] = 1
    cache: Literal["none", "ram", "disk"] = "ram"
    cache_gb: Amount = 2.0


@dataclass(frozen=True)
class ModelOptions(OptionSection):
    """What is trained.

    Args:
        model: a shipped model's name or a `.safetensors` file to start from, or a builder of `multibox list` to start
            from random weights.
        arguments: what a builder is given besides the classes and the size, as a JSON object; on the command line
            model.KEY=VALUE. They are kept in the weights file.
        backbone: a shipped model's name or a file whose backbone a builder's network starts from.
        imgsz: input size, one number or height x width ("320", "256x512"); the model's own when left out.
        anchors: default boxes: "keep" the model's, "fit" them to the data, or a file of `multibox anchors --save`.
        freeze: leading stages of the backbone that are not trained.
        freeze_norm: keep the statistics and factors of batch normalisation as they are.
        nms_iou: of the trained model's non-maximum suppression; the original model's when left out.
        new_nms_iou: in its place where the model does not score every class of the data already, unless nms_iou is
            given.
    """

    model: str = "ssdlite300-coco"
    arguments: str = ""
    backbone: str = ""
    imgsz: str = ""
    anchors: str = "keep"
    freeze: Annotated[int, Within(0)] = 0
    freeze_norm: bool = False
    nms_iou: Share | None = None
    new_nms_iou: Share | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size_hw()
        self.builder_arguments()

    def builder_arguments(self) -> dict[str, Any]:
        """`arguments` as Python objects."""
        try:
            found = json.loads(self.arguments or "{}")
        except ValueError as error:
            raise OptionError(f"arguments={self.arguments!r}: not JSON ({error})") from None
        if not isinstance(found, dict):
            raise OptionError(f'arguments={self.arguments!r}: expected a JSON object, like {{"scales": "coco"}}')
        for key, option in (("num_classes", "the data settles the classes"), ("size_hw", "write imgsz= for the size")):
            if key in found:
                raise OptionError(f"{key} is no further argument of the network: {option}")
        return found

    def size_hw(self) -> tuple[int, int] | None:
        """(height, width) asked for, or None."""
        return parse_size_hw(self.imgsz) if self.imgsz else None


@dataclass(frozen=True)
class AugmentOptions(OptionSection):
    """How much to augment. The defaults are those of the released Caffe code of SSD.

    Args:
        mosaic: probability that three random pictures are laid beside this one first (`augmentation.mosaic`; not in
            SSD). The loader does it, for `augment` sees a single picture.
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        photometric: probability that colours are distorted at all; then each of the four distortions has one of 0.5.
        brightness: largest amount added, of 255.
        contrast: values are multiplied by a factor within 1 ± this.
        saturation: the saturation is multiplied by a factor within 1 ± this.
        hue: largest turn of the hue in degrees (the original's 18 are OpenCV's units of 2 degrees).
        zoom_out: probability that the picture is laid into a larger canvas of the fill colour.
        zoom_out_max: largest ratio of the canvas's side to the picture's.
        crop: probability that a crop is sampled; otherwise the whole canvas is used.
        crop_overlaps: one sampler for each of these least IoUs of the crop with at least one object. A random crop and
            the whole picture are always samplers too.
        crop_min_scale: least side of a crop relative to the canvas, before its aspect ratio (0.5 … 2) is applied.
        crop_trials: crops that each sampler tries.
        interpolation: probability that the picture is not resized by the model's own rule but by nearest, box,
            bilinear, bicubic or Lanczos filtering, one as likely as the other; all but nearest average over
            the pixels they skip.

    Raises:
        OptionError: a value out of range.
    """

    mosaic: Probability = 0.0
    flip: Probability = 0.5
    flip_vertical: Probability = 0.0
    photometric: Probability = 1.0
    brightness: Annotated[float, Within(0, 255, "grey levels; 0 turns it off")] = 32.0
    contrast: Annotated[float, Within(0, 1, "0.5 means a factor of 0.5 … 1.5; 0 turns it off")] = 0.5
    saturation: Annotated[float, Within(0, 1, "0.5 means a factor of 0.5 … 1.5; 0 turns it off")] = 0.5
    hue: Annotated[float, Within(0, 180, "degrees; 0 turns it off")] = 36.0
    zoom_out: Probability = 0.5
    zoom_out_max: Annotated[float, Within(1, 16, "a ratio of sides; zoom_out=0 turns it off")] = 4.0
    crop: Probability = 1.0
    crop_overlaps: Annotated[tuple[float, ...], Within(0, 1, "least IoUs")] = (0.1, 0.3, 0.5, 0.7, 0.9)
    crop_min_scale: Annotated[float, Within(0.01, 1, "a share of the side; crop=0 turns crops off")] = 0.3
    crop_trials: Annotated[int, Within(1, 1000, "a number of crops; crop=0 turns crops off")] = 50
    interpolation: Probability = 0.5


@dataclass(frozen=True)
class LossOptions(OptionSection):
    """What is minimised; see `multibox.core.loss`.

    Args:
        class_loss: cross-entropy over the objects and the hardest background ("mined"), or focal loss over every
            default box ("focal", sigmoid models only).
        negative_ratio: background boxes for each matched one, when mined.
        focal_gamma: how much easy boxes are played down.
        focal_alpha: weight of objects against background.
        box_loss: smooth L1 on the offsets, or generalised / complete IoU of the decoded boxes.
        box_weight: of the box loss.
        match_iou: overlap above which a default box is matched to an object; of a cascade one number for all stages, or
            one for each with commas. The model's own rule (0.5 for SSD) when left out.
    """

    class_loss: Literal["mined", "focal"] = "mined"
    negative_ratio: Amount = 3.0
    focal_gamma: Annotated[float, Within(0, 10)] = 2.0
    focal_alpha: Share = 0.25
    box_loss: Literal["smooth_l1", "giou", "ciou"] = "smooth_l1"
    box_weight: Amount = 1.0
    match_iou: Annotated[tuple[float, ...], Within(0.05, 0.95)] = ()


@dataclass(frozen=True)
class OptimOptions(OptionSection):
    """How it is minimised.

    Args:
        epochs: passes over the training pictures.
        known_epochs: epochs in their place where the model scores every class of the data already. Giving epochs turns
            it off.
        least_updates: updates that a run has at least; a small data set gets more epochs for it. Giving epochs turns it
            off.
        batch: pictures in a step, over all processes.
        accumulate: steps whose gradients are added up before the weights move.
        optimizer: "sgd" (with momentum) or "adamw".
        lr0: learning rate after the warm-up.
        known_lr0: learning rate in its place where the model scores every class of the data already. Giving lr0 turns
            it off.
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

    epochs: Count = 30
    known_epochs: Count | None = None
    least_updates: Annotated[int, Within(0, 1e6)] = 0
    batch: Count = 16
    accumulate: Annotated[int, Within(1, 1e4)] = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr0: Annotated[float, Within(0, 100, above=True)] = 0.01
    known_lr0: Annotated[float, Within(0, 100, above=True)] | None = None
    momentum: Annotated[float, Within(0, 0.9999)] = 0.9
    weight_decay: Share = 5e-4
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    final_factor: Share = 0.01
    steps: Annotated[tuple[float, ...], Within(0, 1, above=True)] = (0.667, 0.833)
    warmup: Annotated[float, Within(0, 1e6)] = 1.0
    backbone_lr: Annotated[float, Within(0, 100)] = 1.0
    bias_lr: Annotated[float, Within(0, 100)] = 1.0
    clip_norm: Amount = 10.0
    ema: Annotated[float, Within(0, 0.999999)] = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.steps) != sorted(set(self.steps)):
            given = ",".join(map(str, self.steps))
            raise OptionError(f"steps={given}: write rising parts of the run, as 0.667,0.833")


@dataclass(frozen=True)
class RunOptions(OptionSection):
    """Where and how the run goes.

    Args:
        project: folder of run folders.
        name: of the run folder; numbered when it exists.
        exist_ok: write into an existing run folder.
        device: auto (a GPU that computes right, else the CPU), cpu, cuda, cuda:1, mps.
        seed: of everything random.
        deterministic: only operations that give the same bits again; slower on a GPU.
        amp: compute in half precision: bf16, fp16 (GPUs only), or bf16 where the processor has instructions for it
            ("auto"). Losses, averages and validation are in float32 always.
        compile: compile the network first (torch.compile).
        val_every: epochs between validations; the last epoch is always validated.
        patience: validations without a better one after which the run ends; 0 for never.
        save_every: seconds between saves of the state within an epoch; it is saved after every epoch anyway.
        tensorboard: write TensorBoard events into the run folder.
        plots: draw sample batches, the curves and the report of the best weights.
        quiet: print errors only.
    """

    project: str = "runs"
    name: str = "train"
    exist_ok: bool = False
    device: str = "auto"
    seed: Annotated[int, Within(0, 2**31)] = 0
    deterministic: bool = False
    amp: Literal["none", "auto", "bf16", "fp16"] = "none"
    compile: bool = False
    val_every: Count = 1
    patience: Annotated[int, Within(0, 1e6)] = 0
    save_every: Amount = 120.0
    tensorboard: bool = False
    plots: bool = True
    quiet: bool = False
