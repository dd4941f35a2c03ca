"""What a measurement ran on: processor, memory, versions, energy."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from multibox.cpus import usable_cpus

__all__ = ["EnergyMeter", "hardware_line", "peak_memory_mb"]

POWERCAP = Path("/sys/class/powercap")
PACKAGES = ("multibox", "onnxruntime", "openvino", "ai-edge-litert", "torch", "torchvision", "numpy", "pillow")


def hardware_line() -> str:
    """Processor, how many of it this process may use, memory, system, and the versions that take part."""
    usable, there = usable_cpus(), os.cpu_count() or 1
    parts = [_processor(), f"{usable} of {there} CPUs" if usable != there else f"{there} CPUs"]
    if memory := _memory_gb():
        parts.append(f"{memory:.0f} GB")
    parts += [f"{platform.system()} {platform.machine()}", f"Python {platform.python_version()}"]
    return ", ".join([*parts, *_versions()])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    import multibox

    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {multibox.__version__ if package == 'multibox' else version(package)}")
        except PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float | None:
    """Most memory this process has held so far, in MB; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class EnergyMeter:
    """Energy of the processor packages of this machine, everything that runs on it included, where Linux tells it.

    Args:
        folder: that of the powercap interface.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._zones: list[tuple[Path, int]] = []
        for zone in sorted(folder.glob("*:*")):
            if zone.name.count(":") == 1:  # with more it is a part of a package, counted there
                limit, now = _number(zone / "max_energy_range_uj"), _number(zone / "energy_uj")
                if limit and now is not None:
                    self._zones.append((zone / "energy_uj", limit))

    def read(self) -> tuple[int, ...] | None:
        """The counters in microjoules, to be given to `joules` later; None where they cannot be read."""
        values = [_number(path) for path, _ in self._zones]
        known = tuple(value for value in values if value is not None)
        return known if values and len(known) == len(values) else None

    def joules(self, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> float | None:
        """Between two readings; counters that started anew once in between are understood."""
        if before is None or after is None:
            return None
        steps = zip(before, after, self._zones, strict=True)
        return sum((b - a) % (limit + 1) for a, b, (_, limit) in steps) / 1e6


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
