r"""The data doctor: what is wrong with a data set, how bad it is, and a repaired copy of it.

>>> from multibox.data import read_dataset
>>> from multibox.doctor import examine
>>> examination = examine(read_dataset("VOC2012", check_pictures=False))
>>> print(*examination.lines(), sep="\n")
"""

from multibox.doctor.anchor_fit import AnchorFit
from multibox.doctor.anchors import AnchorProposal, propose_anchors
from multibox.doctor.examination import Examination, examine
from multibox.doctor.kinds import FINDING_KINDS, CheckFinding, FindingKind, Level, Policy
from multibox.doctor.repair import Repair, repair_dataset, write_repaired
from multibox.doctor.report import write_report

__all__ = [
    "FINDING_KINDS",
    "AnchorFit",
    "AnchorProposal",
    "CheckFinding",
    "Examination",
    "FindingKind",
    "Level",
    "Policy",
    "Repair",
    "examine",
    "propose_anchors",
    "repair_dataset",
    "write_repaired",
    "write_report",
]
