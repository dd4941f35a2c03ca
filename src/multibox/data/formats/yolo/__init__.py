"""YOLO text with data.yaml."""

from multibox.data.formats.yolo.read import evidence, read
from multibox.data.formats.yolo.write import write

__all__ = ["evidence", "read", "write"]
