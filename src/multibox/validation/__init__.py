"""A model on a data set: predictions, numbers, and a run folder that keeps both."""

from multibox.validation.folder import load_evaluation, save_evaluation
from multibox.validation.run import Validation, validate

__all__ = ["Validation", "load_evaluation", "save_evaluation", "validate"]
