"""The files that `multibox predict` writes, as it goes: a long run that stops keeps what it had found."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from multibox.detections import Detections
from multibox.errors import MultiboxError, OptionError

if TYPE_CHECKING:
    from multibox.sources import Source

__all__ = ["Outputs", "new_run_folder", "open_outputs"]

KEPT_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})  # others are drawn as .jpg


def new_run_folder(project: str, name: str, *, exist_ok: bool) -> Path:
    """Create project/name, or project/name-2, -3 … when it exists and may not be reused."""
    if Path(name).name != name or name in {"", ".", ".."}:
        raise OptionError(f"name={name!r} must be a plain folder name; put the path into project")
    for number in range(1, 1_000_000):
        folder = Path(project).expanduser() / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            if exist_ok:
                raise OptionError(f"{folder} is a file; choose another name") from None
            continue
        except OSError as error:
            raise MultiboxError(f"{folder}: cannot be created ({error.strerror}); choose a writable project=") from None
        return folder
    raise OptionError(f"{project}/{name}: too many run folders; choose another name")


class Outputs:
    """Writers for one run. Built by `open_outputs`."""

    def __init__(self, sources: Sequence[Source], options: dict[str, Any], stack: ExitStack) -> None:
        from multibox.sources import unique_output_names

        self._draw = options["save"] if options["save"] is not None else not options["as_json"]
        self._text = options["save_txt"]
        wanted = self._draw or self._text or options["save_csv"] or options["save_coco"]
        self.folder = (
            new_run_folder(options["project"], options["name"], exist_ok=options["exist_ok"]) if wanted else None
        )
        self._sources = sources
        self._names = unique_output_names(sources) if wanted else []
        self._image_ids = _image_ids(self._names)
        self._csv: Any = None
        self._coco: TextIO | None = None
        self._coco_rows = 0
        if self.folder and options["save_csv"]:
            file = stack.enter_context((self.folder / "detections.csv").open("w", newline="", encoding="utf-8"))
            self._csv = csv.writer(file)
            self._csv.writerow(Detections.CSV_COLUMNS)
        if self.folder and options["save_coco"]:
            self._coco = stack.enter_context((self.folder / "coco-results.json").open("w", encoding="utf-8"))
            self._coco.write("[")
            stack.callback(self._coco.write, "\n]\n")

    def write(self, number: int, detections: Detections) -> None:
        """Everything asked for, about the picture with this position in the list of sources."""
        if self.folder is None:
            return
        with _writing(self.folder):
            self._write(self.folder, number, detections)

    def _write(self, folder: Path, number: int, detections: Detections) -> None:
        stem = self._names[number]
        if self._draw:
            suffix = Path(self._sources[number].name).suffix.lower()
            detections.save(folder / (stem + (suffix if suffix in KEPT_SUFFIXES else ".jpg")))
        if self._text:
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "labels" / f"{stem}.txt").write_text(detections.to_yolo(), encoding="utf-8")
        if self._csv:
            self._csv.writerows(detections.to_csv_rows())
        if self._coco:
            for row in detections.to_coco(self._image_ids[number]):
                self._coco.write((",\n" if self._coco_rows else "\n") + json.dumps(row))
                self._coco_rows += 1


def _image_ids(names: Sequence[str]) -> list[int | str]:
    """The number that a name is ("000000000139" is 139), as in COCO; the names themselves where two would be equal."""
    numbers = [int(name) if name.isascii() and name.isdecimal() else None for name in names]
    counts = Counter(numbers)
    return [
        name if number is None or counts[number] > 1 else number for name, number in zip(names, numbers, strict=True)
    ]


@contextmanager
def open_outputs(sources: Sequence[Source], options: dict[str, Any]) -> Iterator[Outputs]:
    """Writers for one run; files are completed and closed however the run ends.

    A new run folder that stayed empty, because no picture could be read, is removed again.

    Raises:
        MultiboxError: the folder cannot be created, or a file not written.
    """
    stack = ExitStack()
    with _writing(options["project"]):
        outputs = Outputs(sources, options, stack)
    try:
        yield outputs
    finally:
        with _writing(outputs.folder):
            stack.close()
        if outputs.folder and not options["exist_ok"] and not any(outputs.folder.iterdir()):
            outputs.folder.rmdir()
            outputs.folder = None


@contextmanager
def _writing(place: Path | str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"cannot write the results ({error.strerror or error})"
        raise MultiboxError(f"{place}: {reason}; free some space or choose another project=") from None
