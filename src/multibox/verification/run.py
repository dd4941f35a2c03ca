"""From a request to a file that has been proven, or refused."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multibox.errors import MissingDependencyError
from multibox.export.source import open_source
from multibox.export.triton import require_free
from multibox.quiet import import_quietly
from multibox.verification.check import Report, verify
from multibox.verification.int8 import Int8
from multibox.verification.pictures import drawn_pictures, evenly, read_pictures
from multibox.verification.request import ExportRequest
from multibox.verification.selection import select
from multibox.verification.written import composed, network_for, write, write_frigate_labels

__all__ = ["Outcome", "export_verified"]

COMPARED = 16  # pictures of the data set that are compared number by number

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What was written: the file (renamed if it was refused), its report, and what the check found."""

    path: Path
    report_path: Path
    report: Report


def export_verified(request: ExportRequest, *, say: Say = lambda text: None) -> Outcome:
    """Export, run what was written, and compare it with its source; a file that fails is renamed to NAME.rejected.

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
    say(f"writing {path}: {card.name}, head {request.head}, {request.batch_words}")
    network = network_for(detector, card, request)
    reference, quantisation = None, {}
    if request.is_int8:
        assert data is not None
        work = Int8(request, detector, card, network, data, say)
        reference, quantisation = work.reference, work.write(path)
    else:
        write(composed(network, card, request), path, card, request)
    if request.head == "frigate":
        write_frigate_labels(path.with_suffix(".labels.txt"), card)
    pictures = drawn_pictures()
    if data is not None:
        pictures = read_pictures(data.measure, evenly(len(data.measure), COMPARED)) + pictures
    say(f"checking {path} on {len(pictures)} pictures" + ("" if data is None else f" and {len(data.measure)} for AP"))
    report = verify(
        path,
        detector,
        card,
        pictures,
        tolerances=request.tolerances,
        dataset=None if data is None else data.measure,
        reference=reference,
    )
    report.quantisation = quantisation
    if data is not None:
        report.notes += data.notes
    return _settled(path, report)


def _rejected(path: Path) -> Path:
    return path.with_name(path.name + ".rejected")


def _settled(path: Path, report: Report) -> Outcome:
    """Rename what failed, and write the report."""
    report_path = path.with_suffix(path.suffix + ".report.json")
    report.write(report_path)
    rejected = _rejected(path)
    if rejected.is_dir():
        shutil.rmtree(rejected)
    rejected.unlink(missing_ok=True)
    if report.passed:
        return Outcome(path, report_path, report)
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        weights.replace(weights.with_name(weights.name + ".rejected"))
    path.replace(rejected)
    return Outcome(rejected, report_path, report)
