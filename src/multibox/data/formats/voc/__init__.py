"""Pascal VOC."""

from multibox.data.formats.voc.read import evidence, read
from multibox.data.formats.voc.write import write

__all__ = ["evidence", "read", "write"]
