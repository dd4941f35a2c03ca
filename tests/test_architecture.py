"""Who may import whom, and what importing the package loads; the design as a test."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "multibox"

# Layer of each part. A module imports parts of lower layers, its own part, and what SIDEWAYS allows.
LAYERS = {
    **dict.fromkeys(["errors", "classes", "anchors", "preprocess", "postprocess", "images"], 0),
    **dict.fromkeys(["detections", "drawing", "sources", "card", "catalogue", "cpus", "quiet"], 0),
    "core": 1,
    **dict.fromkeys(["models", "data", "evaluation"], 2),
    **dict.fromkeys(["weights", "training", "export", "runtime", "explain"], 3),
    **dict.fromkeys(["serve", "validation", "verification", "benchmarking"], 4),
    **dict.fromkeys(["cli", "__init__"], 5),
    "__main__": 6,
}
SIDEWAYS = {
    "training": {"weights"},
    "export": {"weights"},
    "runtime": {"weights"},  # its eager engine only
    "explain": {"runtime"},
    "verification": {"validation"},
}
# Layers 0 and the base-install engines load nothing heavy, wherever the import stands.
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
    for name, _, line in imports(path):
        if not name.startswith("multibox."):
            continue
        target = name.split(".")[1]
        if part == "runtime" and path.stem != "eager":
            assert target == "runtime" or LAYERS[target] == 0, f"{path}:{line}: only eager.py may need {target}"
        if target.startswith("__"):
            continue  # multibox.__version__
        allowed = (
            target == part
            or LAYERS[target] < LAYERS[part]
            or (LAYERS[target] == LAYERS[part] == 0)
            or target in SIDEWAYS.get(part, set())
            or part == "cli"
        )
        assert allowed, f"{path}:{line}: {part} (layer {LAYERS[part]}) imports {target} (layer {LAYERS[target]})"


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
        if LAYERS[part] == 0:
            assert package in OPTIONAL_INSIDE_FUNCTIONS, f"{path}:{line}: {name}"


def loaded_by(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after running some code."""
    program = f"{code}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    environment = {"PYTHONPATH": str(SOURCE.parent), "PATH": "", "PYTHONSAFEPATH": "1", "MULTIBOX_CACHE": os.devnull}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return set(done.stdout.split())


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
