"""Size and start-up of an installed multibox: packages, megabytes, import, help, first detection.

    python benchmarks/install.py ENVIRONMENT

ENVIRONMENT is a virtual environment with multibox in it. Packages and megabytes are those that the installation added:
pip and setuptools, which venv itself puts there, are not counted.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "chelsea.png"
VENV_OWN = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
REPEATS = 7


def timed(command: list[str], folder: str) -> float:
    """Best wall time of a command in seconds, over a few runs after one to warm the disk cache."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[REPEATS // 2]


def main() -> None:
    environment = Path(sys.argv[1]).resolve()
    python = str(environment / "bin" / "python")
    site = next((environment / "lib").glob("python*/site-packages"))
    added = [p for p in site.iterdir() if not p.name.startswith(VENV_OWN)]
    megabytes = (
        sum(f.stat().st_size for p in added for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()) / 1e6
    )
    packages = [p.name.split("-")[0] for p in added if p.name.endswith(".dist-info")]
    print(f"packages {len(packages)}: {', '.join(sorted(packages))}")
    print(f"size {megabytes:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        empty = timed([python, "-c", "pass"], folder)
        print(
            f"import multibox {timed([python, '-c', 'import multibox'], folder) - empty:.3f} s beyond an empty Python"
        )
        print(f"multibox --help {timed([str(environment / 'bin' / 'multibox'), '--help'], folder):.3f} s")
        first = [python, "-c", f"import multibox; multibox.Detector()({str(EXAMPLE)!r})"]
        print(f"first detection of a fresh process {timed(first, folder):.3f} s (median of {REPEATS})")


if __name__ == "__main__":
    main()
