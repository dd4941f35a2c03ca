r"""The data doctor: what is wrong with a data set, how bad it is, and a cleaned copy of it.

>>> from multibox.data import read_dataset
>>> from multibox.doctor import examine
>>> diagnosis = examine(read_dataset("VOC2012", check_pictures=False))
>>> print(*diagnosis.lines(), sep="\n")
"""

from multibox.doctor.anchor_fit import AnchorFit, fit_anchors
from multibox.doctor.examination import Diagnosis, examine
from multibox.doctor.kinds import ILLNESSES, Illness, Level, Policy, Symptom
from multibox.doctor.repair import Cure, cure, write_cured
from multibox.doctor.report import write_report

__all__ = [
    "ILLNESSES",
    "AnchorFit",
    "Cure",
    "Diagnosis",
    "Illness",
    "Level",
    "Policy",
    "Symptom",
    "cure",
    "examine",
    "fit_anchors",
    "write_cured",
    "write_report",
]
