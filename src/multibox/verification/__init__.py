"""Exports that are proven: the written file is run on pictures and compared with the network it came from."""

from multibox.verification.check import Report, Tolerances, verify
from multibox.verification.request import ExportRequest
from multibox.verification.run import Outcome, export_verified

__all__ = ["ExportRequest", "Outcome", "Report", "Tolerances", "export_verified", "verify"]
