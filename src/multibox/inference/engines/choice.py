"""Which engine "auto" is: what the environment says, else what was fastest here, else the first that opens the file.

`multibox benchmark` times the engines that are installed and notes the fastest in a file of the user's cache folder,
under the model's digest, the versions of everything that takes part and the number of processors. Nothing is timed
while predicting, and a cache that is missing, damaged or not writable only means that nothing is known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import multibox
from multibox.cpus import usable_cpus
from multibox.errors import OptionError
from multibox.inference.engines.table import ENGINES, engine_row, installed

__all__ = [
    "ENGINE_VARIABLE",
    "asked_engine",
    "cache_file",
    "fastest_engine",
    "note_timings",
]

ENGINE_VARIABLE = "MULTIBOX_ENGINE"
CACHE_VARIABLE = "MULTIBOX_CACHE"
MOST_ENTRIES = 200  # models in the file; the oldest go first
CLEARLY = 0.95  # of the default's time: by less than this an engine is not worth a change of the last digits


def asked_engine(engine: str) -> str:
    """The engine that was asked for: where that is "auto", what the environment variable MULTIBOX_ENGINE says.

    Raises:
        OptionError: the variable names no engine.
    """
    named = os.environ.get(ENGINE_VARIABLE, "").strip()
    if engine != "auto" or not named:
        return engine
    if named != "auto":
        try:
            engine_row(named)
        except OptionError as error:
            raise OptionError(f"{ENGINE_VARIABLE}: {error}") from None
    return named


def cache_file() -> Path | None:
    """Where timings are kept: in MULTIBOX_CACHE, or the system's folder for such files; None without a home."""
    from platformdirs import user_cache_path

    named = os.environ.get(CACHE_VARIABLE, "").strip()
    try:
        folder = Path(named).expanduser() if named else user_cache_path("multibox", appauthor=False)
    except RuntimeError:  # no home
        return None
    return folder / "engines.json"


def fastest_engine(path: Path, candidates: tuple[str, ...]) -> str | None:
    """The engine that was clearly the fastest with this file on this machine, or None where that is not known.

    Args:
        path: the model file.
        candidates: engines that open it, the default first.
    """
    entries = _read(cache_file())
    try:
        identity = _identity(path)
    except OSError:
        return None
    alike = [e for e in entries.values() if isinstance(e, dict) and e.get("size") == identity["size"]]
    if not alike:
        return None
    # The digest of a large file takes longer than all the rest, so it is made only of one that has not been seen there.
    known = next((e for e in alike if identity.items() <= e.items() and isinstance(e.get("sha256"), str)), None)
    entry = entries.get(_key(known["sha256"] if known else _digest(path)))
    timings = entry.get("ms") if isinstance(entry, dict) else None
    if not isinstance(timings, dict):
        return None
    fitting = {name: timings[name] for name in candidates if isinstance(timings.get(name), int | float)}
    return _fastest(fitting, candidates[0])


def _fastest(timings: Mapping[str, float], default: str) -> str | None:
    if default not in timings:
        return None
    best = min(timings, key=lambda name: timings[name])
    return best if timings[best] < CLEARLY * timings[default] and installed(best) else default


def note_timings(path: Path, timings_ms: Mapping[str, float]) -> Path | None:
    """Keep what the engines took with a model file; the file that was written, or None where none can be.

    Args:
        path: the model file.
        timings_ms: milliseconds a picture, by engine.
    """
    import tempfile

    file = cache_file()
    if file is None:
        return None
    digest = _digest(path)
    key = _key(digest)
    entries = {name: entry for name, entry in _read(file).items() if name != key}
    entries[key] = {**_identity(path), "sha256": digest, "ms": dict(timings_ms)}
    text = json.dumps({"format": 1, "entries": dict(list(entries.items())[-MOST_ENTRIES:])}, indent=1)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            Path(name).replace(file)  # at once, so that no reader sees half of it
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError:
        return None
    return file


def _read(file: Path | None) -> dict[str, Any]:
    """Entries by key; none where there is no file, or one that this version does not understand."""
    try:
        data = json.loads(file.read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError, RecursionError):
        return {}
    entries = data.get("entries") if isinstance(data, dict) and data.get("format") == 1 else None
    return entries if isinstance(entries, dict) else {}


def _identity(path: Path) -> dict[str, Any]:
    """What tells, without reading it, that a file is the one it was."""
    found = path.stat()
    return {"path": str(path.absolute()), "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(digest: str) -> str:
    """Digest of the model, versions of multibox and the engines, processors: all that may change who is the fastest."""
    installations = [name for package in _packages() for name in _installations(package)]
    return ", ".join([digest, f"multibox {multibox.__version__}", f"{usable_cpus()} cpus", *installations])


def _packages() -> list[str]:
    return list(dict.fromkeys(row.package for row in ENGINES.values()))


def _installations(package: str) -> list[str]:
    """Names with versions of what is installed of a package, as "openvino-2026.1.0"; read from a folder's listing.

    The standard library's own way loads a parser for e-mail first, which takes longer than the rest of an opening.
    """
    try:
        spec = find_spec(package)
    except ValueError:  # blocked or half loaded
        return []
    if spec is None or spec.origin is None:
        return []
    folders = Path(spec.origin).parent.parent.glob(f"{package}*.dist-info")
    return sorted(folder.name.removesuffix(".dist-info") for folder in folders) or [f"{package} at {spec.origin}"]
