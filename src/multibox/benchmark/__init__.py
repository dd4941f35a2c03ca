"""How fast a model is on this machine, and beside others; what `multibox benchmark` prints."""

from multibox.benchmark.report import markdown
from multibox.benchmark.run import BenchmarkRequest, benchmark

__all__ = ["BenchmarkRequest", "benchmark", "markdown"]
