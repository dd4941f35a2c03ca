"""A picture on its way to its detections: opened, read, prepared for the network."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multibox.errors import ImageError
from multibox.pictures.opening import read_limited
from multibox.pictures.read import read_picture

if TYPE_CHECKING:
    from multibox.spec.options import PictureOptions
    from multibox.spec.pipeline import Pipeline, Prepared

__all__ = ["Deferred", "Picture", "PictureRequest"]


@dataclass(frozen=True)
class Deferred:
    """A picture that is read by a function when its turn comes.

    Args:
        name: what it is called in the result and in errors.
        read: gives it, [h, w, 3] uint8 RGB upright, or raises ImageError.
        ahead: whether another thread may read it before it is asked for, and so may let the caller wait while it ends.
    """

    name: str
    read: Callable[[], NDArray[np.uint8]]
    ahead: bool = False


@dataclass(frozen=True)
class PictureRequest:
    """A picture with options of its own, in place of those that its stream has for all.

    Args:
        picture: what `Detector.stream` takes.
        options: what is asked of it.
    """

    picture: Any
    options: PictureOptions


class Picture:
    """One picture on its way to its detections.

    Args:
        picture: what was given, or a `PictureRequest`.
        options: what is asked of a picture that has no options of its own.

    Attributes:
        options: what is asked of this one.
        source: what to read, now and again for drawing.
        shown: how to call it; None where it has no name.
        ahead: whether it may be read later and by another thread: it stays the same, and reading it ends by itself.
        prepared: network input and geometry, once it has been read.
        error: why it cannot be read, in place of that.
    """

    def __init__(self, picture: Any, options: PictureOptions) -> None:
        if isinstance(picture, PictureRequest):
            picture, options = picture.picture, picture.options
        self.options = options
        self.source, self.shown = picture, _shown(picture)
        if isinstance(picture, str | os.PathLike):
            self.ahead = not _is_pipe(picture)
        else:
            self.ahead = isinstance(picture, bytes) or (isinstance(picture, Deferred) and picture.ahead)
        self.prepared: Prepared | None = None
        self.error: ImageError | None = None

    def prepare(self, pipeline: Pipeline, *, keep_going: bool) -> None:
        """Read it and make the network's input of it, unless that has been done."""
        if self.prepared is None and self.error is None:
            rgb = self.pixels(keep_going=keep_going)
            if rgb is not None:
                self.prepared = pipeline.prepare(rgb)

    def pixels(self, *, keep_going: bool) -> NDArray[np.uint8] | None:
        """[h, w, 3] uint8 RGB; None with `error` set when it cannot be read and that is not to be raised."""
        try:
            if isinstance(self.source, Deferred):
                self.source = rgb = self.source.read()
                return rgb
            if hasattr(self.source, "read") and not hasattr(self.source, "size"):
                self.source = read_limited(self.source, self.shown or "<picture>")  # it is read once, to its end
            return read_picture(self.source, name=self.shown)
        except ImageError as error:
            if not keep_going:
                raise
            self.error = error
            return None


def _shown(picture: Any) -> str | None:
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture) if isinstance(picture, os.PathLike) else picture
    name = getattr(picture, "filename", None) or getattr(picture, "name", None)
    return name if isinstance(name, str) and name else None


def _is_pipe(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to something other than a file, which may let its reader wait for ever."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - any path, also one of bytes
    except (OSError, ValueError):
        return False
