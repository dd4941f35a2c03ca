"""From a request to a file that has been proven, or refused."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multibox.errors import MissingDependencyError
from multibox.export.int8_search import Int8, layers_in_words, nothing_in_int8
from multibox.export.request import ExportRequest
from multibox.export.source import open_source
from multibox.export.triton import require_free
from multibox.export.verify.check import Report, verify
from multibox.export.verify.samples import drawn_pictures, evenly, read_pictures
from multibox.export.verify.selection import select
from multibox.export.writing import composed, network_for, write, write_frigate_labels
from multibox.quiet import import_quietly

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
    if request.suffix == ".xml":
        import_quietly("openvino", purpose="exporting to OpenVINO", extra="openvino")
    if request.format == "openvino-int8" and importlib.util.find_spec("nncf") is None:
        raise MissingDependencyError("nncf", "quantising for OpenVINO", "quantize")
    if request.is_litert:
        for package in ("litert_torch", *(("ai_edge_quantizer",) if request.is_int8 else ())):
            if importlib.util.find_spec(package) is None:
                raise MissingDependencyError(package, "exporting to LiteRT", "litert")
    detector, card = open_source(request.model, size_hw=request.size_hw)
    card = request.asked(card)
    data = None if request.data is None else select(request)
    path = request.file_for(card)
    if request.format == "triton":
        require_free(path)
        require_free(_rejected(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is not proven has no name: until then it lies aside, and whatever has the name stays as it is.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
        made = Path(aside) / path.name
        say(f"writing {path}: {card.name}, head {request.head}, {request.batch_words}")
        network = network_for(detector, card, request)
        reference, quantisation = None, {}
        if request.is_int8:
            assert data is not None
            work = Int8(request, detector, card, network, data, say)
            reference, quantisation = work.reference, work.write(made)
        else:
            write(composed(network, card, request), made, card, request)
        if request.head == "frigate":
            write_frigate_labels(made.with_suffix(".labels.txt"), card)
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


def _rejected(path: Path) -> Path:
    return path.with_name(path.name + ".rejected")


def _settled(made: Path, path: Path, report: Report) -> Outcome:
    """Give what was made its name, or with a failure that of a rejected file, and write the report beside it."""
    files = [file for file in made.rglob("*") if file.is_file()] if made.is_dir() else [made]
    files += [file for suffix in COMPANIONS if (file := made.with_suffix(suffix)).is_file()]
    report.sha256 = {
        file.relative_to(made.parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
    }
    target = path if report.passed else _rejected(path)
    report_path = target.with_name(target.name + ".report.json")
    stale = _rejected(path)
    if stale.is_dir():
        require_free(stale)
        shutil.rmtree(stale)
    companions = (_rejected(path.with_suffix(suffix)) for suffix in COMPANIONS)
    for old in (stale, stale.with_name(stale.name + ".report.json"), *companions):
        old.unlink(missing_ok=True)
    written = made.with_name(report_path.name)
    report.write(written)  # before anything gets its name, so that a full disk leaves no file with another's report
    for suffix in COMPANIONS:
        companion = made.with_suffix(suffix)
        if companion.is_file():
            there = path.with_suffix(suffix)
            companion.replace(there if report.passed else _rejected(there))
    if target.is_dir():
        require_free(target)
        target.rename(made.with_name("earlier"))
    made.replace(target)
    written.replace(report_path)
    return Outcome(target, report_path, report)
