"""Processors that may be used, with control groups made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multibox import cpus
from multibox.cpus import usable_cpus

PLENTY = 64


@pytest.fixture(autouse=True)
def bound_to_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(PLENTY)), raising=False)


class Tree:
    """A process's folder in /proc, and the control group file system it points to."""

    def __init__(self, root: Path) -> None:
        self.proc, self.mount = root / "proc", root / "cg roup"
        self.proc.mkdir()
        self.mount.mkdir()

    def process(self, groups: str, mounts: str) -> Path:
        place = str(self.mount).replace(" ", r"\040")
        (self.proc / "cgroup").write_text(groups)
        (self.proc / "mountinfo").write_text(mounts.replace("MOUNT", place))
        return self.proc

    def write(self, path: str, **values: str) -> None:
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in values.items():
            (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


V2 = "30 23 0:26 / MOUNT rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 32 0:29 /docker/abc MOUNT ro master:9 - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", PLENTY),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("9900000 100000", PLENTY),
        ("0 100000", PLENTY),
        ("100000 0", PLENTY),
        ("", PLENTY),
        ("x y", PLENTY),
    ],
)
def test_version_2_in_a_container(tree: Tree, quota: str, expected: int) -> None:
    tree.write(".", cpu__max=quota)
    assert usable_cpus(tree.process("0::/\n", V2)) == expected


def test_version_2_takes_the_least_of_the_groups_above(tree: Tree) -> None:
    tree.write("kubepods/pod1/c", cpu__max="max 100000")
    tree.write("kubepods/pod1", cpu__max="300000 100000")
    tree.write("kubepods", cpu__max="800000 100000")
    tree.write("other", cpu__max="100000 100000")
    assert usable_cpus(tree.process("0::/kubepods/pod1/c\n", V2)) == 3


def test_version_2_outside_of_what_is_mounted(tree: Tree) -> None:
    tree.write(".", cpu__max="200000 100000")
    assert usable_cpus(tree.process("0::/../../elsewhere\n", V2)) == 2


@pytest.mark.parametrize(("quota", "expected"), [("-1", PLENTY), ("250000", 3), ("50000", 1)])
def test_version_1(tree: Tree, quota: str, expected: int) -> None:
    tree.write(".", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert usable_cpus(tree.process("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n", V1)) == expected


def test_version_1_below_the_mounted_group(tree: Tree) -> None:
    tree.write("inner", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    tree.write(".", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    assert usable_cpus(tree.process("4:cpu,cpuacct:/docker/abc/inner\n", V1)) == 2


def test_other_controllers_do_not_count(tree: Tree) -> None:
    tree.write(".", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    mounts = V1.replace("rw,cpu,cpuacct", "rw,memory")
    assert usable_cpus(tree.process("4:memory:/docker/abc\n", mounts)) == PLENTY


def test_what_cannot_be_read_limits_nothing(tree: Tree) -> None:
    assert usable_cpus(tree.proc) == PLENTY
    assert usable_cpus(tree.process("nonsense\n::\n", "nonsense\n - \n - cgroup2\n")) == PLENTY


def test_what_it_is_bound_to_is_the_limit(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write(".", cpu__max="800000 100000")
    process = tree.process("0::/\n", V2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cpus(process) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cpus(process) == 5


def test_here() -> None:
    assert cpus.usable_cpus() >= 1
