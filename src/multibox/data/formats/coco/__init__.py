"""COCO JSON."""

from multibox.data.formats.coco.read import evidence, read
from multibox.data.formats.coco.write import write

__all__ = ["evidence", "read", "write"]
