"""Models that ship inside the package, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multibox.errors import ModelFileError, did_you_mean

__all__ = ["CATALOGUE", "DEFAULT_MODEL", "CatalogueEntry", "resolve_model"]

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = "ssdlite300-coco"


@dataclass(frozen=True)
class CatalogueEntry:
    """One shipped model."""

    name: str
    description: str
    licence: str

    def path(self, suffix: str) -> Path:
        """File of the model, `.onnx` (prediction) or `.safetensors` (training)."""
        return ASSETS / f"{self.name}{suffix}"


CATALOGUE = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            "ssdlite300-coco", "SSDLite300 on MobileNetV2, trained on COCO (80 classes), ships inside", "Apache-2.0"
        ),
    )
}


def resolve_model(name_or_path: str | Path, *, suffixes: tuple[str, ...] = (".onnx", ".safetensors")) -> Path:
    """Path of a model file, from a shipped model's name or a path.

    Args:
        name_or_path: e.g. "ssdlite300-coco" or "runs/train/weights/best.safetensors".
        suffixes: acceptable file types; for a shipped name the first one is chosen.

    Raises:
        ModelFileError: no such name or file, or a file type that is not acceptable.
    """
    text = str(name_or_path)
    if text in CATALOGUE:
        return CATALOGUE[text].path(suffixes[0])
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        raise ModelFileError(text, "is a folder", "name the model file inside it")
    if not path.exists():
        looks_like_path = path.suffix != "" or len(path.parts) > 1
        remedy = "check the path" if looks_like_path else did_you_mean(text, CATALOGUE)
        raise ModelFileError(text, "no such model file" if looks_like_path else "unknown model", remedy)
    if path.suffix.lower() not in suffixes:
        raise ModelFileError(
            text,
            f"files of type {path.suffix or '(none)'} are not opened (pickled checkpoints can run code)",
            f"use {' or '.join(suffixes)}, or convert the weights with `multibox import`",
        )
    return path
