"""From a request to a file that has been proven, or refused."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multibox.data.sampling import evenly
from multibox.export.heads import HEADS
from multibox.export.int8_search import Int8Search, layers_in_words, nothing_in_int8
from multibox.export.layout import metadata_of
from multibox.export.request import ExportRequest
from multibox.export.selection import select
from multibox.export.triton import require_free
from multibox.export.verify.check import Report, verify
from multibox.export.verify.samples import drawn_pictures, read_pictures
from multibox.files import atomic_move
from multibox.spec.card import ModelCard
from multibox.weights.opening import open_model

__all__ = ["Outcome", "export_verified"]

COMPARED = 16  # pictures of the data set that are compared number by number
COMPANIONS = (".bin", ".labels.txt")  # suffixes of what may lie beside an exported file: its weights, its classes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What was written: the file (NAME.rejected if it was refused), its report, and what the check found."""

    path: Path
    report_path: Path
    report: Report


def export_verified(request: ExportRequest, *, say: Say = lambda text: None) -> Outcome:
    """Export, run what was written, and compare it with its source; a file that fails is named NAME.rejected.

    An earlier export of that name gives way to a file that has passed, and to nothing else.

    Raises:
        MultiboxError: the source cannot be opened, a package is missing, the data cannot be read.
    """
    row, head = request.row, HEADS[request.head]
    writer = row.writer
    detector, card = open_model(request.model, size_hw=request.size_hw, **request.builder_arguments)
    card = request.asked(card)
    layout = request.layout(card)
    data = None if request.data is None else select(request, detector, card)
    path = request.file_for(card)
    if not row.suffix:
        require_free(path)
        require_free(_rejected(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is not proven has no name: until then it lies aside, and whatever has the name stays as it is.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
        made = Path(aside) / path.name
        say(f"writing {path}: {card.name}, head {request.head}, {request.batch_words}")
        network = writer.convert_network(detector, card, batch=layout.batch)
        reference, quantisation = None, {}
        if row.int8:
            assert data is not None
            search = Int8Search(request, detector, card, network, data, say)
            reference, quantisation = search.reference, search.write(made)
        else:
            writer.write(writer.compose(network, card, layout), made, metadata_of(card, layout), card)
        if head.label_base is not None:
            made.with_suffix(".labels.txt").write_text(_label_file(card, head.label_base), encoding="utf-8")
        pictures = drawn_pictures()
        if data is not None:
            pictures = read_pictures(data.measure, evenly(len(data.measure), COMPARED)) + pictures
        measured = "" if data is None else f" and {len(data.measure)} for AP"
        say(f"checking {path} on {len(pictures)} pictures{measured}")
        report = verify(
            made,
            detector,
            card,
            pictures,
            tolerances=request.tolerances,
            dataset=None if data is None else data.measure,
            reference=reference,
        )
        report.quantisation = quantisation
        if quantisation:
            report.failures += nothing_in_int8(quantisation)
            report.notes.append(layers_in_words(quantisation))
        if data is not None:
            report.notes += data.notes
        return _settled(made, path, report)


def _label_file(card: ModelCard, first: int) -> str:
    """A number and a name a line, background first."""
    names = ["background", *card.class_map.names]
    return "".join(f"{number}  {' '.join(name.split())}\n" for number, name in enumerate(names, first - 1))


def _rejected(path: Path) -> Path:
    return path.with_name(path.name + ".rejected")


def _settled(made: Path, path: Path, report: Report) -> Outcome:
    """Give what was made its name, or with a failure that of a rejected file, and write the report beside it."""
    companions = {suffix: made.with_suffix(suffix) for suffix in COMPANIONS if made.with_suffix(suffix).is_file()}
    files = [*(made.rglob("*") if made.is_dir() else [made]), *companions.values()]
    report.sha256 = {
        file.relative_to(made.parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_file()
    }
    target = path if report.passed else _rejected(path)
    report_path = target.with_name(target.name + ".report.json")
    stale = _rejected(path)
    if stale.is_dir():
        require_free(stale)
        shutil.rmtree(stale)
    for old in (
        stale,
        stale.with_name(stale.name + ".report.json"),
        *(_rejected(path.with_suffix(suffix)) for suffix in COMPANIONS),
    ):
        old.unlink(missing_ok=True)
    written = made.with_name(report_path.name)
    report.write(written)  # before anything gets its name, so that a full disk leaves no file with another's report
    for suffix, companion in companions.items():
        there = path.with_suffix(suffix)
        atomic_move(companion, there if report.passed else _rejected(there))
    if target.is_dir():
        require_free(target)
        target.rename(made.with_name("earlier"))
    atomic_move(made, target)
    atomic_move(written, report_path)
    return Outcome(target, report_path, report)
