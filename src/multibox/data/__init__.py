"""Annotated data sets: read as annotation tools leave them, looked at picture by picture, written in six formats.

>>> from multibox.data import read_dataset, write_dataset
>>> dataset = read_dataset("VOC2012", split="train")
>>> dataset[0].boxes_xyxy
>>> write_dataset(dataset, "as-yolo", format="yolo")
"""

from multibox.data.findings import DataError, Finding, Findings
from multibox.data.formats.huggingface import from_rows
from multibox.data.formats.table import FORMATS, WRITABLE, detect_format, read_dataset, write_dataset
from multibox.data.records import Dataset, ImageRecord
from multibox.data.write_report import WriteReport

__all__ = [
    "FORMATS",
    "WRITABLE",
    "DataError",
    "Dataset",
    "Finding",
    "Findings",
    "ImageRecord",
    "WriteReport",
    "detect_format",
    "from_rows",
    "read_dataset",
    "write_dataset",
]
