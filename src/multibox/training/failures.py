"""What a run says, and puts aside, when a step cannot be computed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from multibox.core.structures import Target
from multibox.data import Dataset
from multibox.errors import MultiboxError, first_line
from multibox.training.loader import Batch
from multibox.training.options import OptimOptions

__all__ = ["TrainingError", "explained", "nonfinite_error"]

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "DefaultCPUAllocator")


class TrainingError(MultiboxError):
    """A step could not be computed; what was saved before is intact."""


def nonfinite_error(
    batch: Batch, annotations: Dataset, folder: Path, *, step: int, loss_of: Callable[[Batch], float]
) -> TrainingError:
    """Find the pictures, and in them the boxes, that make the loss infinite; write them aside.

    Args:
        batch: of the step.
        annotations: that the batch's numbers refer to.
        folder: where the pictures and boxes go, one PNG and one JSON file for each.
        step: for the file names.
        loss_of: the loss of a batch as the run computes it.
    """
    guilty: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    for row, number in enumerate(batch.numbers):
        target = batch.targets[row]
        alone = Batch(batch.pixels[row : row + 1], (target,), (number,), ())
        if math.isfinite(loss_of(alone)):
            continue
        boxes = [
            i
            for i in range(len(target.labels))
            if not math.isfinite(loss_of(alone._replace(targets=(_one(target, i),))))
        ]
        path = str(annotations.picture_path(number))
        stem = f"step-{step}-{Path(path).stem}-{number}"
        Image.fromarray(np.asarray(batch.pixels[row].cpu())).save(folder / f"{stem}.png")
        content: dict[str, Any] = {
            "picture": path,
            "step": step,
            "unit_xyxy": target.truth_unit_xyxy.tolist(),
            "labels": [annotations.class_map.names[int(i)] for i in target.labels],
            "boxes_with_nonfinite_loss": boxes,
        }
        (folder / f"{stem}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        every = len(boxes) == len(target.labels)
        guilty.append(path if every or not boxes else f"{path} (boxes {', '.join(map(str, boxes))})")
    if not guilty:
        return TrainingError(
            f"the loss of step {step} is not finite, though that of each of its pictures is; lower lr0 or use amp=bf16"
        )
    shown = ", ".join(guilty[:4]) + (f" and {len(guilty) - 4} more" if len(guilty) > 4 else "")
    if len(guilty) == len(batch.numbers):
        advice = "it is so for every picture, so the weights have diverged: start anew with a smaller lr0 or clip_norm"
    else:
        advice = "look at these pictures and their boxes (`multibox check` may say more), or leave them out"
    return TrainingError(f"the loss of step {step} is not finite for {shown}; written to {folder}; {advice}")


def _one(target: Target, index: int) -> Target:
    part = slice(index, index + 1)
    return Target(target.truth_unit_xyxy[part], target.labels[part], target.ignore[part])


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def _memory_error(error: BaseException, options: OptimOptions) -> TrainingError:
    batch, smaller = options.batch, max(1, options.batch // 2)
    accumulate = options.accumulate * round(batch / smaller)
    advice = f"start anew with batch={smaller} accumulate={accumulate}, which learns nearly the same"
    if smaller == batch:
        advice = "use a smaller imgsz or a smaller model"
    return TrainingError(f"out of memory with batch={batch} ({_sentence(error)}); {advice}")


def explained(error: BaseException, options: OptimOptions, *, saved: str) -> TrainingError | None:
    """An error of a library in the user's terms; None where it is none that is expected.

    Args:
        error: what was raised while training.
        options: of the run.
        saved: what was saved, and how to go on.
    """
    text = str(error)
    if isinstance(error, TrainingError):
        return None
    if "DataLoader worker" not in text:
        if "more than 1 value per channel" in text:
            advice = "use batch=2 or more for each process, or freeze_norm=true"
            return TrainingError(f"batch normalisation cannot learn from single pictures; {advice}")
        return _memory_error(error, options) if _is_out_of_memory(error) else None
    ours = re.search(r"^multibox\.[\w.]+: (.+)", text, re.MULTILINE | re.DOTALL)  # raised in the worker, on purpose
    if ours is not None:
        return TrainingError(ours[1].strip())
    if text.startswith("Caught ") and not _is_out_of_memory(error):
        return None
    advice = "often memory has run out: use fewer workers, or cache=none"
    return TrainingError(f"a process that reads pictures has ended ({_sentence(error)}); {advice}; {saved}")


def _sentence(error: BaseException) -> str:
    return first_line(error).rstrip(". ")
