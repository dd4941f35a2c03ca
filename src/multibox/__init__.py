"""multibox: single-shot (SSD-family) object detection."""

__version__ = "0.1.0"
