"""How fast a model is on this machine, and beside others; what `multibox benchmark` prints."""

from multibox.benchmarking.report import markdown
from multibox.benchmarking.run import BenchmarkRequest, benchmark

__all__ = ["BenchmarkRequest", "benchmark", "markdown"]
