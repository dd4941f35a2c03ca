"""Models that ship inside the package, by name."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from multibox.errors import ModelFileError, did_you_mean

__all__ = ["CATALOGUE", "DEFAULT_MODEL", "NETWORKS", "CatalogueEntry", "Size", "resolve_model"]

PICKLED = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = "ssdlite300-coco"


@dataclass(frozen=True)
class Size:
    """How large a network is at its own input, as `multibox info` computes it.

    Args:
        input_hw: (height, width) of the input.
        boxes: default boxes.
        parameters: of all layers.
        multiply_adds: for one picture.
    """

    input_hw: tuple[int, int]
    boxes: int
    parameters: int
    multiply_adds: int

    def __str__(self) -> str:
        height, width = self.input_hw
        return (
            f"{height} × {width}, {self.boxes:,} boxes, {self.parameters / 1e6:.1f} M parameters, "
            f"{self.multiply_adds / 1e9:.2f} G multiply-adds"
        )


NETWORKS = {
    "bpn300_mobilenetv2": Size((300, 300), 5790, 4181200, 1032660848),
    "bpn320_efficientnet_lite0": Size((320, 320), 6375, 5386224, 1337996800),
    "bpn320_vgg16": Size((320, 320), 6375, 43526852, 39963161600),
    "bpn512_vgg16": Size((512, 512), 16320, 43526852, 102305693696),
    "refinedet320_vgg16": Size((320, 320), 6375, 34440884, 37772921600),
    "refinedet512_vgg16": Size((512, 512), 16320, 34440884, 96698679296),
    "ssd300_resnet34": Size((300, 300), 8762, 12600032, 14123746048),
    "ssd300_resnet50": Size((300, 300), 8762, 13860832, 16017150720),
    "ssd300_vgg16": Size((300, 300), 8732, 26285486, 31373537792),
    "ssd512_resnet34": Size((512, 512), 24560, 12600032, 40142858240),
    "ssd512_resnet50": Size((512, 512), 24560, 13860832, 45524150272),
    "ssd512_vgg16": Size((512, 512), 24564, 27188676, 90207908864),
    "ssd_backbone": Size((320, 320), 2432, 16042080, 3933220352),
    "ssdlite300_mobilenetv2": Size((300, 300), 1917, 4320660, 733121072),
    "ssdlite320_efficientnet_lite0": Size((320, 320), 2034, 5494100, 969913408),
    "ssdlite320_efficientnet_lite1": Size((320, 320), 2034, 6258772, 1209260608),
    "ssdlite320_efficientnet_lite2": Size((320, 320), 2034, 6947316, 1365550208),
    "ssdlite320_mobilenetv3_large": Size((320, 320), 2432, 4044304, 516366976),
    "tinyssd256": Size((256, 256), 5444, 1010376, 976628736),
}
"""The names of this package in `multibox.models.list_models`, which needs torch to tell them."""


@dataclass(frozen=True)
class CatalogueEntry:
    """One shipped model."""

    name: str
    description: str
    licence: str
    size: Size

    def path(self, suffix: str) -> Path:
        """File of the model, `.onnx` (prediction) or `.safetensors` (training)."""
        return ASSETS / f"{self.name}{suffix}"


CATALOGUE = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            "ssdlite300-coco",
            "SSDLite300 on MobileNetV2, trained on COCO (80 classes), ships inside",
            "Apache-2.0",
            Size((300, 300), 1917, 4301300, 733121072),
        ),
    )
}


def resolve_model(
    name_or_path: str | Path,
    *,
    suffixes: tuple[str, ...] = (".onnx", ".safetensors"),
    builders: Iterable[str] = NETWORKS,
) -> Path:
    """Path of a model file, from a shipped model's name or a path.

    Args:
        name_or_path: e.g. "ssdlite300-coco" or "runs/train/weights/best.safetensors".
        suffixes: acceptable file types; for a shipped name the first one is chosen.
        builders: further names that would have been understood, for the message.

    Raises:
        ModelFileError: no such name or file, or a file type that is not acceptable.
    """
    text = str(name_or_path)
    if text in CATALOGUE:
        return CATALOGUE[text].path(suffixes[0])
    wanted = " or ".join(suffixes)
    if not text.strip():
        raise ModelFileError(repr(text), "is an empty name", f"give a {wanted} file, or one of: {', '.join(CATALOGUE)}")
    try:
        path = Path(name_or_path).expanduser()
        found = path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # absent; or a name no system accepts; or a ~user unknown here
        raise _not_found(text, error, builders) from None
    if stat.S_ISDIR(found.st_mode):
        raise ModelFileError(text, "is a folder", "name the model file inside it")
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        reason = f"{suffix} files are not opened: they are pickled, and reading them can run code"
        raise ModelFileError(text, reason, f"use a {wanted} file, or convert the weights with `multibox import`")
    if suffix not in suffixes:
        reason = f"a {wanted} file is needed here, not {suffix or 'one without a suffix'}"
        ours = suffix in {".onnx", ".safetensors", ".tflite", ".xml"}
        remedy = "give that one, or use engine=auto" if ours else "convert foreign weights with `multibox import`"
        raise ModelFileError(text, reason, remedy)
    return path


def _not_found(text: str, error: Exception, builders: Iterable[str]) -> ModelFileError:
    path = Path(text)
    if isinstance(error, PermissionError):
        return ModelFileError(text, "may not be read by this user", "change its permissions or run as its owner")
    if not path.suffix and len(path.parts) == 1:
        hint = did_you_mean(text, {*CATALOGUE, *builders})
        remedy = hint if hint.endswith("?") else f"{hint}; or give the path of a model file"
        return ModelFileError(text, "unknown model", remedy)
    if path.stem in CATALOGUE:
        return ModelFileError(text, "no such model file", f"the model that ships inside is called {path.stem!r}")
    return ModelFileError(text, "no such model file", "check the path, or see `multibox list`")
