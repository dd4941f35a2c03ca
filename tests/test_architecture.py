"""Who may import whom, and what importing the package loads: the layout as a test."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "multibox"

# The floor of each part. A module imports parts of lower floors and its own part; SIDEWAYS lists what else.
LAYERS = {
    **dict.fromkeys(["errors", "cpus", "devices", "files", "run_folders", "html", "quiet", "catalogue"], 0),
    **dict.fromkeys(["spec", "pictures"], 1),
    **dict.fromkeys(["core", "data", "inference"], 2),
    **dict.fromkeys(["models", "doctor", "evaluation", "benchmark"], 3),
    "weights": 4,
    **dict.fromkeys(["training", "export"], 5),
    **dict.fromkeys(["explain", "serve", "tracking", "cluster", "verbs"], 6),
    "cli": 7,
    **dict.fromkeys(["__init__", "__main__"], 8),
}
SIDEWAYS = {"spec": {"pictures"}, "pictures": {"spec"}}
# The one engine that computes with torch reads its files through `weights`, inside functions. The package `export` has
# the name of a public function and passes calls on to it.
UPWARD_INSIDE_FUNCTIONS = {
    ("inference/engines/torch.py", "weights"),
    ("inference/engines/torch.py", "models"),
    ("export/__init__.py", "verbs"),
}
# The two lowest floors and the engines of the base install load nothing heavy, wherever the import stands.
BASE_ONLY = {"numpy", "PIL", "onnxruntime", "click", "multibox"}
OPTIONAL_INSIDE_FUNCTIONS = {"torch", "torchvision", "supervision", "safetensors"}
TORCH_PARTS = {"core", "models", "weights", "export", "training"}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> list[tuple[str, bool, int]]:
    """(imported module, at module level, line) for every import outside `if TYPE_CHECKING`."""
    found: list[tuple[str, bool, int]] = []

    def walk(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                assert child.module is not None
                if child.module == "multibox":
                    found.extend((f"multibox.{alias.name}", top, child.lineno) for alias in child.names)
                else:
                    found.append((child.module, top, child.lineno))
            walk(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    walk(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in modules()} <= set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_downward(path: Path) -> None:
    part = part_of(path)
    for name, top, line in imports(path):
        if not name.startswith("multibox."):
            continue
        target = name.split(".")[1]
        if target.startswith("__") or target == part:
            continue  # multibox.__version__, or a neighbour
        upward = not top and (path.relative_to(SOURCE).as_posix(), target) in UPWARD_INSIDE_FUNCTIONS
        allowed = LAYERS[target] < max(LAYERS[part], 1) or target in SIDEWAYS.get(part, set()) or upward
        assert allowed, f"{path}:{line}: {part} (floor {LAYERS[part]}) imports {target} (floor {LAYERS[target]})"


@pytest.mark.slow
def test_no_import_circle() -> None:
    """Wherever an import stands: a module that is reached from itself cannot be understood alone."""
    files = {module_name(path): path for path in modules()}
    graph = {name: imported(path, files) for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, files: dict[str, Path]) -> set[str]:
    """The package's own modules that a file imports, by their own names: `from a import b` is a.b where that is one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {
                inner if (inner := f"{node.module}.{alias.name}") in files else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & set(files)) - {"multibox"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    part = part_of(path)
    if part in TORCH_PARTS:
        return
    for name, top, line in imports(path):
        package = name.split(".")[0]
        if package in sys.stdlib_module_names or package in BASE_ONLY:
            assert not (top and package == "onnxruntime"), f"{path}:{line}: onnxruntime at module level"
            continue
        assert not top, f"{path}:{line}: {name} at module level"
        if LAYERS[part] <= 1:
            assert package in OPTIONAL_INSIDE_FUNCTIONS, f"{path}:{line}: {name}"


def loaded_by(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after running some code."""
    program = f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    environment = {"PYTHONPATH": str(SOURCE.parent), "PATH": "", "PYTHONSAFEPATH": "1", "MULTIBOX_CACHE": os.devnull}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("function", ["postprocess_np", "suppress_np"])
def test_one_place_calls_the_post_processing(function: str) -> None:
    calls = [
        f"{path.relative_to(SOURCE)}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function
    ]
    assert calls == ["spec/pipeline.py"]


def test_importing_the_package_is_light() -> None:
    heavy = {"torch", "torchvision", "onnxruntime", "numpy", "PIL", "click", "safetensors"}
    assert not loaded_by("import multibox") & heavy


def test_help_loads_neither_numpy_nor_engines() -> None:
    code = "import sys; sys.argv = ['multibox', '--help']\nfrom multibox.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass"
    loaded = loaded_by(code)
    assert "click" in loaded
    assert not loaded & {"torch", "onnxruntime", "numpy", "PIL"}


def test_predicting_with_the_base_install_never_loads_torch() -> None:
    example = SOURCE.parents[1] / "examples" / "chelsea.png"
    loaded = loaded_by(f"import multibox; multibox.Detector()({str(example)!r})")
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "torchvision", "safetensors", "onnx"}


def test_public_names_resolve() -> None:
    import multibox

    for name in multibox.__all__:
        assert getattr(multibox, name) is not None
    assert set(dir(multibox)) == set(multibox.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Detecter'"):
        multibox.Detecter  # noqa: B018
