"""What a stream of predictions can be asked, besides what can be asked of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multibox.errors import OptionError, did_you_mean
from multibox.spec.options import PictureOptions, require_count, require_fraction

__all__ = ["StreamOptions", "split_options"]

SMALLEST_TILE = 32  # pixels


@dataclass(frozen=True)
class StreamOptions:
    """How a stream works; checked on construction.

    Args:
        batch: pictures given to the network at once.
        workers: threads that work on later pictures (or on tiles) meanwhile; as many as the engine has, up to 8, when
            left out. 1: one after the other, each picture drawn only when the results before it have been taken.
        tile: side in pixels of the tiles that larger pictures are looked at in, besides as a whole; no tiles when left
            out. With tiles a picture is worked on alone, and its tiles at once.
        tile_overlap: of neighbouring tiles, as a fraction of their side. Objects up to this size are seen whole.

    Raises:
        OptionError: a value out of range or of the wrong kind.
    """

    batch: int = 1
    workers: int | None = None
    tile: int | None = None
    tile_overlap: float = 0.2

    def __post_init__(self) -> None:
        require_fraction(self, "tile_overlap", top="tiles that share everything get nowhere", needed=True)
        require_count(self, "batch", needed=True)
        require_count(self, "workers")
        require_count(self, "tile", least=SMALLEST_TILE)


def split_options(options: Mapping[str, Any]) -> tuple[PictureOptions, StreamOptions]:
    """Keyword arguments as what is asked of each picture and of the stream.

    Raises:
        OptionError: an unknown option, or a value out of range.
    """
    of_picture, of_stream = PictureOptions.__dataclass_fields__, StreamOptions.__dataclass_fields__
    for key in options:
        if key not in of_picture and key not in of_stream:
            raise OptionError(f"unknown option {key!r}; {did_you_mean(key, {*of_picture, *of_stream})}")
    return (
        PictureOptions(**{key: value for key, value in options.items() if key in of_picture}),
        StreamOptions(**{key: value for key, value in options.items() if key in of_stream}),
    )
