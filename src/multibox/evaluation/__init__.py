"""Numbers one can believe: COCO's and VOC's, with protocol and engine named, their uncertainty, and what lies behind.

Everything reads an `EvaluationSet` (truth and predictions of the same pictures, no framework) and gives a small frozen
result with `to_dict()` for JSON and `table()` for people. A number that is not defined is None there and a dash here.
"""

from multibox.evaluation.calibration import Calibration, CalibrationError, ReliabilityBin, calibration
from multibox.evaluation.coco import CocoClass, CocoResult, evaluate_coco
from multibox.evaluation.confusion import ConfusionMatrix, confusion_matrix
from multibox.evaluation.curves import Curve, Curves, OperatingPoint, precision_recall
from multibox.evaluation.errors import ErrorExample, ErrorSplit, ErrorType, error_split
from multibox.evaluation.mapping import ALIASES, ClassMapping, map_classes
from multibox.evaluation.plots import (
    plot_calibration,
    plot_confusion,
    plot_errors,
    plot_f1,
    plot_precision_recall,
    save_png,
)
from multibox.evaluation.records import EvaluationSet, Truth
from multibox.evaluation.run_folder import load_evaluation, save_evaluation
from multibox.evaluation.uncertainty import (
    DEFAULT_METRICS,
    Bootstrap,
    Comparison,
    Difference,
    Interval,
    bootstrap,
    compare,
)
from multibox.evaluation.validate import Validation, validate
from multibox.evaluation.voc import VocClass, VocResult, evaluate_voc

__all__ = [
    "ALIASES",
    "DEFAULT_METRICS",
    "Bootstrap",
    "Calibration",
    "CalibrationError",
    "ClassMapping",
    "CocoClass",
    "CocoResult",
    "Comparison",
    "ConfusionMatrix",
    "Curve",
    "Curves",
    "Difference",
    "ErrorExample",
    "ErrorSplit",
    "ErrorType",
    "EvaluationSet",
    "Interval",
    "OperatingPoint",
    "ReliabilityBin",
    "Truth",
    "Validation",
    "VocClass",
    "VocResult",
    "bootstrap",
    "calibration",
    "compare",
    "confusion_matrix",
    "error_split",
    "evaluate_coco",
    "evaluate_voc",
    "load_evaluation",
    "map_classes",
    "plot_calibration",
    "plot_confusion",
    "plot_errors",
    "plot_f1",
    "plot_precision_recall",
    "precision_recall",
    "save_evaluation",
    "save_png",
    "validate",
]
