"""`multibox.train`, `validate` and `export`: what the commands of these names do, with their options by keyword."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multibox.errors import MissingDependencyError, OptionError, counted
from multibox.run_folders import discard_empty_folder, new_run_folder

if TYPE_CHECKING:
    from multibox.evaluation.results import Results
    from multibox.export.run import Outcome
    from multibox.training.config import TrainConfig
    from multibox.training.progress import Callback
    from multibox.training.run import TrainResult
    from multibox.training.sample import Transform

__all__ = ["Validated", "export", "train", "training_config", "validate"]

Say = Callable[[str], None]


def _silence(_: str) -> None:
    pass


def train(
    data: str | Path = "",
    *,
    recipe: str | None = None,
    resume: str | Path | None = None,
    builder_arguments: Mapping[str, Any] | None = None,
    transforms: Sequence[Transform] = (),
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TrainResult:
    """Train a detector; what `multibox train` does.

    >>> import multibox
    >>> result = multibox.train("my-pictures", epochs=20, device="auto")  # doctest: +SKIP
    >>> multibox.Detector(result.best)("cat.jpg")  # doctest: +SKIP

    Args:
        data: a data set in any format that `read_dataset` reads.
        recipe: a recipe's name or a TOML file; that of the model when left out.
        resume: the folder of a stopped run to go on with, in place of `data`.
        builder_arguments: what the builder that `model` names is given.
        transforms: own augmentations, before the built-in ones; see `multibox.training.run.train`.
        callbacks: told of every step and epoch.
        options: those of the command by name, with underscores: model, epochs, lr0, batch, device, project, name …

    Returns:
        The run folder, the history, the best epoch, and `best`, the path of its weights.

    Raises:
        OptionError: an unknown option, or options that contradict each other, the model or the data.
        DataError: data that cannot be read, or nothing to learn in it.
        MissingDependencyError: torch is not installed.
        TrainingError: a step that could not be computed; the state before it is saved.
    """
    given: dict[str, Any] = {"transforms": transforms, "callbacks": callbacks}
    if resume is not None:
        if data or recipe:
            raise OptionError("--resume takes the run folder and nothing else that could change the run")
        require_training()
        from multibox.training.run import resume as resume_run

        return resume_run(Path(resume), **given, **options)
    config = training_config(data, recipe=recipe, builder_arguments=builder_arguments, **options)
    from multibox.training.run import train as train_run

    if os.environ.get("RANK", "0") != "0":  # of several processes, the first makes the folder and tells the others
        return train_run(config, folder=Path(), **given)
    folder = new_run_folder(config.run.project, config.run.name, exist_ok=config.run.exist_ok)
    try:
        return train_run(config, folder=folder, **given)
    except BaseException:
        discard_empty_folder(folder)
        raise


def training_config(
    data: str | Path, *, recipe: str | None, builder_arguments: Mapping[str, Any] | None, **options: Any
) -> TrainConfig:
    """Every option of a run: those given, then the recipe's; see `train`.

    Raises:
        OptionError: as `train` does.
        MissingDependencyError: training's packages are not installed.
    """
    from multibox.training.config import TrainConfig, merge
    from multibox.training.recipes import recipe_for

    if builder_arguments:
        options["arguments"] = json.dumps(dict(builder_arguments))
    if str(data):
        options["data"] = str(data)
    model = str(options.get("model", TrainConfig().model.model))
    config = merge(recipe_for(model, recipe), options)
    if not config.data.data:
        raise OptionError("nothing to learn from: write multibox train DATA, or --resume RUN_FOLDER")
    require_training()
    return config


def require_training() -> None:
    """Raise MissingDependencyError unless training's packages are installed."""
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "training", "train") from None


@dataclass(frozen=True)
class Validated:
    """The result of a validation.

    Attributes:
        folder: the run folder, with metrics.json, report.html, plots, predictions and truth.
        results: every number; `results.coco.ap50`, `results.table()`, `results.summary()`.
        lost: what of the annotations could not be read, in words; "" for nothing.
    """

    folder: Path
    results: Results
    lost: str


def validate(
    model: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    format: str | None = None,
    images: str | Path | None = None,
    conf: float = 0.01,
    iou: float | None = None,
    max_det: int = 100,
    classes: str | Iterable[str | int] | None = None,
    aliases: Mapping[str, str | None] | None = None,
    agnostic_nms: bool = False,
    engine: str = "auto",
    device: str = "auto",
    metrics_engine: Any = "auto",
    resamples: int = 1000,
    project: str = "runs",
    name: str = "val",
    exist_ok: bool = False,
    say: Say = _silence,
    progress: Callable[[range], Iterable[int]] = iter,
    **builder_arguments: Any,
) -> Validated:
    """Measure a model on a data set; what `multibox val` does.

    >>> import multibox
    >>> done = multibox.validate("ssdlite300-coco", "my-pictures", split="val")  # doctest: +SKIP
    >>> done.results.coco.ap50  # doctest: +SKIP

    Args:
        model: a shipped model, a model file, or a builder's name.
        data: a data set in any format that `read_dataset` reads.
        split: only this part of it.
        format: of the data; recognised when left out.
        images: the pictures, for a lone COCO JSON.
        conf: scores above it are kept.
        iou: of non-maximum suppression; the model's own when left out.
        max_det: most detections in a picture.
        classes: of the data, names or indexes, or a text with commas; all when left out.
        aliases: data set class (None: nowhere) for a model class, where names do not settle it.
        agnostic_nms: boxes of different classes suppress each other.
        engine: that runs the model; "auto" is the best for the file.
        device: "auto", "cpu", "cuda", "cuda:1" …
        metrics_engine: "auto", "pycocotools" or "numpy".
        resamples: of the bootstrap for the intervals; 0 for none.
        project, name, exist_ok: the run folder, numbered when it exists unless `exist_ok`.
        say: told what was found, a line at a time.
        progress: wraps the range of the pictures, for a progress bar.
        builder_arguments: what the builder that `model` names is given.

    Raises:
        ModelFileError, OptionError: no such model, engine, device or metrics engine.
        DataError: the data cannot be read.
        ClassMapError: no class in common.
        ContractError: no picture that can be read.
    """
    from multibox.data import read_dataset
    from multibox.evaluation import EvaluationSet, evaluate_coco
    from multibox.evaluation.results import measure, write_results
    from multibox.evaluation.validate import validate as predict_all
    from multibox.inference import Detector
    from multibox.spec.classes import select_classes

    detector = Detector(model, engine=engine, device=device, **builder_arguments)
    dataset = read_dataset(data, format=format, split=split, images=images)
    size = f"{counted(len(dataset), 'picture')}, {counted(dataset.num_boxes, 'object')}"
    say(f"reading {dataset.origin}: {size}, {counted(len(dataset.class_map), 'class', 'classes')}")
    for line in dataset.findings.summary():
        say(f"  {line}")
    if detector.engine.device != "cpu":
        say(f"device: {detector.engine.device} (engine {detector.engine.name})")
    # Whatever could refuse the result is asked before the minutes of predicting: the engine of the metrics, the folder.
    evaluate_coco(EvaluationSet(dataset.class_map, (), ()), engine=metrics_engine)
    folder = new_run_folder(project, name, exist_ok=exist_ok)
    try:
        validation = predict_all(
            detector,
            dataset,
            conf=conf,
            iou=iou,
            max_det=max_det,
            agnostic_nms=agnostic_nms,
            classes=select_classes(dataset.class_map, classes) if isinstance(classes, str) else classes,
            aliases=aliases,
            progress=progress,
            name=f"{detector.card.name} on {Path(data).name}" + (f" ({split})" if split else ""),
        )
        for note in validation.notes:
            say(f"  {note}")
        results = measure(validation, engine=metrics_engine, resamples=resamples)
        write_results(folder, results, origin=dataset.origin, say=say)
    except BaseException:
        discard_empty_folder(folder)
        raise
    return Validated(folder, results, dataset.findings.loss())


def export(
    model: str | Path,
    *,
    imgsz: int | str | Sequence[int] | None = None,
    tolerance: float = 0.1,
    max_drop: float = 0.01,
    say: Say = _silence,
    **options: Any,
) -> Outcome:
    """Write a model for other programs, and prove that it still is the model; what `multibox export` does.

    >>> import multibox
    >>> done = multibox.export("ssdlite300-coco", format="onnx", head="nms")  # doctest: +SKIP
    >>> done.path, done.report.passed  # doctest: +SKIP

    Args:
        model: a shipped model, a `.safetensors` file, or a builder's name (random weights).
        imgsz: input size: one side, (height, width), or a text like "256x512"; the model's own when left out.
        tolerance: of boxes, in pixels.
        max_drop: of AP50 and AP on the data, 0 … 1.
        say: told of each step, a line at a time.
        options: the other fields of `multibox.export.request.ExportRequest`: format, head, output, batch, dynamic,
            preprocess, conf, iou, max_det, agnostic_nms, data, split, calibrate, calibrate_split, limit,
            builder_arguments.

    Returns:
        The written file (NAME.rejected if it differs from the model), the path of its report, and the report.

    Raises:
        OptionError: an unknown option, or options that contradict each other or the model.
        ModelFileError: no such model.
        MissingDependencyError: a package of the format is not installed.
    """
    from dataclasses import fields

    from multibox.errors import did_you_mean
    from multibox.spec.preprocess import parse_size_hw

    try:
        from multibox.export.request import ExportRequest
        from multibox.export.run import export_verified
        from multibox.export.verify.check import Tolerances
    except ImportError as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise MissingDependencyError(error.name or "torch", "exporting", "export") from None

    known = [field.name for field in fields(ExportRequest)]
    for key in options:
        if key not in known:
            raise OptionError(f"unknown option {key!r}; {did_you_mean(key, known)}")
    if options.get("output") is not None:
        options["output"] = Path(options["output"])
    request = ExportRequest(
        str(model),
        size_hw=None if imgsz is None else parse_size_hw(imgsz),
        tolerances=Tolerances(box_px=tolerance, max_drop=max_drop),
        **options,
    )
    return export_verified(request, say=say)
