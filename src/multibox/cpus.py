"""How many processors this process may use.

The number of processors of the machine is the wrong answer in a container: a quota of two of sixty-four leaves the
other threads of a pool of sixty-four stopped for most of each period.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["usable_cpus"]

PROCESS = Path("/proc/self")


def usable_cpus(process: Path = PROCESS) -> int:
    """Processors that this process may use, at least 1.

    The least of: the processors it is bound to, and the CPU quota of its control group (Linux; versions 1 and 2) and
    of the groups above it, where a started processor counts as one (a quota of 1.5 gives 2).

    Args:
        process: the process's folder in /proc; another one in tests. What cannot be read there limits nothing.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_quotas(process), default=math.inf)
    return max(1, bound if quota == math.inf else min(bound, math.ceil(quota)))


class _Mount(NamedTuple):
    kind: str  # "cgroup" or "cgroup2"
    root: PurePosixPath  # what of the hierarchy is mounted
    place: Path
    options: frozenset[str]


def _quotas(process: Path) -> Iterator[float]:
    """Quotas in processors, of the process's group and those above it, in each hierarchy that limits processors."""
    groups = list(_groups(process))
    for mount in _mounts(process):
        for number, controllers, path in groups:
            if mount.kind == "cgroup2" and number == "0" and not controllers:
                yield from filter(None, map(_quota_v2, _upwards(mount, path)))
            elif mount.kind == "cgroup" and "cpu" in controllers and "cpu" in mount.options:
                yield from filter(None, map(_quota_v1, _upwards(mount, path)))


def _groups(process: Path) -> Iterator[tuple[str, frozenset[str], PurePosixPath]]:
    """(number, controllers, path) of each line of /proc/self/cgroup."""
    for line in _text(process / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            yield number, frozenset(filter(None, controllers.split(","))), PurePosixPath(path)


def _mounts(process: Path) -> Iterator[_Mount]:
    """The control group hierarchies in /proc/self/mountinfo, whose fields proc_pid_mountinfo(5) describes."""
    for line in _text(process / "mountinfo").splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if dash and len(left) >= 5 and len(right) >= 3 and right[0] in {"cgroup", "cgroup2"}:
            root, place = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field) for field in left[3:5])
            yield _Mount(right[0], PurePosixPath(root), Path(place), frozenset(right[2].split(",")))


def _upwards(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    """Folders of the group and of those above it, as far as they are mounted; in a container often the mount alone."""
    inside = group.relative_to(mount.root) if group.is_relative_to(mount.root) else PurePosixPath()
    if ".." in inside.parts:  # a group outside of what the container sees
        inside = PurePosixPath()
    for part in (inside, *inside.parents):
        yield mount.place / part


def _quota_v2(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    """Processors; None without a limit ("max" or -1)."""
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
