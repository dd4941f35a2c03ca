r"""The data doctor: what is wrong with a data set, how bad it is, and a cleaned copy of it.

>>> from multibox.data import read_dataset
>>> from multibox.data.doctor import examine
>>> diagnosis = examine(read_dataset("VOC2012", check_pictures=False))
>>> print(*diagnosis.lines(), sep="\n")
"""

from multibox.data.doctor.anchor_fit import AnchorFit, fit_anchors
from multibox.data.doctor.cure import Cure, cure, write_cured
from multibox.data.doctor.diagnosis import Diagnosis, examine
from multibox.data.doctor.html import write_report
from multibox.data.doctor.kinds import ILLNESSES, Illness, Level, Policy, Symptom

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
