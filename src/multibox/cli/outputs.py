"""The files that `multibox predict` writes, as it goes: a long run that stops keeps what it had found."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from multibox.errors import ImageError, MultiboxError, one_line
from multibox.files import atomic_write
from multibox.run_folders import discard_empty_folder, new_run_folder
from multibox.spec.detections import Detections

if TYPE_CHECKING:
    from multibox.pictures.sources import Source
    from multibox.spec.classes import ClassMap

__all__ = ["Outputs", "open_outputs"]

KEPT_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})  # others are drawn as .jpg
LONGEST_SIDE_PX = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # longer pictures are drawn as .png


class Outputs:
    """Writers for one run. Built by `open_outputs`."""

    def __init__(self, sources: Sequence[Source], options: dict[str, Any], stack: ExitStack) -> None:
        from multibox.pictures.output_names import unique_output_names

        self._draw = options["save"] if options["save"] is not None else not options["as_json"]
        self._text, self._scores = options["save_txt"], options["save_conf"]
        wanted = self._draw or self._text or options["save_csv"] or options["save_coco"]
        self.folder = (
            new_run_folder(options["project"], options["name"], exist_ok=options["exist_ok"]) if wanted else None
        )
        self._sources = sources
        self._names = unique_output_names(sources) if wanted else []
        self._image_ids = _image_ids(self._names)
        self._has_classes = False
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
        """Everything asked for, about the picture with this position in the list of sources.

        Raises:
            ImageError: this picture cannot be drawn. Everything else about it is written, and others can follow.
            MultiboxError: the folder can no longer be written to.
        """
        if self.folder is None:
            return
        with _writing(self.folder):
            if not self._has_classes:
                self._write_classes(self.folder, detections.class_map)
                self._has_classes = True
            self._write(self.folder, number, detections)
            if self._draw:
                self._write_drawing(self.folder, number, detections)

    def _write_classes(self, folder: Path, class_map: ClassMap) -> None:
        """The class lists beside table and labels, so that both can be read as data sets."""
        from multibox.data.class_lists import CLASS_FILE, write_class_file

        if self._csv:
            write_class_file(folder / f"detections.{CLASS_FILE}", class_map)
        if self._text:
            (folder / "labels").mkdir(exist_ok=True)
            plain = all(name == name.strip() and name.isprintable() for name in class_map.names)
            if plain and not any(name.casefold() == "classes" for name in self._names):
                text = "".join(f"{name}\n" for name in class_map.names)
                atomic_write(folder / "labels" / "classes.txt", text, durable=False)
            else:  # a line each does not hold such names, or the labels of a picture have the name of the list
                write_class_file(folder / "labels" / CLASS_FILE, class_map)

    def _write_drawing(self, folder: Path, number: int, detections: Detections) -> None:
        name = self._sources[number].name
        suffix = Path(name).suffix.lower()
        suffix = suffix if suffix in KEPT_SUFFIXES else ".jpg"
        if max(detections.picture_size_hw) > LONGEST_SIDE_PX.get(suffix, max(detections.picture_size_hw)):
            suffix = ".png"
        try:
            detections.save(folder / (self._names[number] + suffix))
        except (OSError, ValueError) as error:  # encoders raise both, and only the system's errors have a number
            if isinstance(error, MultiboxError) or getattr(error, "errno", None) is not None:
                raise
            reason = f"cannot be drawn and written as {suffix} ({one_line(error) or type(error).__name__})"
            raise ImageError(
                one_line(name), reason, "make it smaller, or predict without drawing: save=false"
            ) from None

    def _write(self, folder: Path, number: int, detections: Detections) -> None:
        stem = self._names[number]
        if self._text:
            text = detections.to_yolo(scores=self._scores)
            atomic_write(folder / "labels" / f"{stem}.txt", text, durable=False)
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
        if outputs.folder and not options["exist_ok"] and discard_empty_folder(outputs.folder):
            outputs.folder = None


@contextmanager
def _writing(place: Path | str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"cannot write the results ({error.strerror or error})"
        raise MultiboxError(f"{place}: {reason}; free some space or choose another project=") from None
