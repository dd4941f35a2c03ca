"""Exports that are proven: the written file is run on pictures and compared with the network it came from."""

from multibox.export.request import ExportRequest
from multibox.export.run import Outcome, export_verified
from multibox.export.verify.check import Report, Tolerances, verify

__all__ = ["ExportRequest", "Outcome", "Report", "Tolerances", "export_verified", "verify"]
