"""Defects that older implementations of SSD have in common, and that must not come back.

Others have their tests where the code is: tests/core/test_loss.py (pictures without objects, division by zero, scores
of very different size), tests/core/test_matching.py (two objects with one best box), tests/data/test_transforms.py (the
overlap that a crop asks for, crops that never end), tests/test_anchors.py (sizes cut to whole pixels), and beside this
file.
"""

from __future__ import annotations

import ast
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from short_runs import CLASSES, config, run_folder, training_pictures, write_pictures

from multibox.models import create_model
from multibox.models.layers import L2Norm
from multibox.training.options import AugmentOptions
from multibox.training.run import train

SOURCE = Path(__file__).parents[2] / "src" / "multibox"


@pytest.mark.slow
def test_a_batch_larger_than_the_data_ends_its_epochs(tmp_path: Path) -> None:
    result = train(config(write_pictures(tmp_path, count=4), batch=8), folder=run_folder(tmp_path / "run"))
    assert [row["epoch"] for row in result.history] == [1, 2, 3]


def test_crops_end_whatever_is_asked_of_them(pictures: Path) -> None:
    options = AugmentOptions(crop_overlaps=(1.0,) * 5, crop_min_scale=0.9, crop_trials=50)
    made = training_pictures(pictures, options=options)
    started = time.process_time()
    for number in range(9):
        assert made[0, number][0].rgb.shape == (48, 64, 3)
    assert time.process_time() - started < 5


def test_the_overlap_of_a_half_is_among_the_crops() -> None:
    assert AugmentOptions().crop_overlaps == (0.1, 0.3, 0.5, 0.7, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["ssd300_vgg16", "ssd512_vgg16", "ssdlite300_mobilenetv2", "tinyssd256"])
def test_default_boxes_follow_the_input_and_not_the_classes(builder: str) -> None:
    spec = create_model(builder).spec.preprocess.size_hw
    for classes in (1, 20, 80):
        made = create_model(builder, num_classes=classes)
        assert torch.equal(made.anchors_cxcywh(), create_model(builder).anchors_cxcywh())
    wider = create_model(builder, size_hw=[spec[0], spec[1] * 2])
    assert len(wider.anchors_cxcywh()) > 1.5 * len(create_model(builder).anchors_cxcywh())


def test_an_empty_position_has_a_norm_and_a_finite_gradient() -> None:
    norm = L2Norm(4)
    given = torch.zeros(1, 4, 2, 2, requires_grad=True)
    norm(given.relu()).sum().backward()
    assert norm(given).eq(0).all()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    assert norm.weight.grad is not None
    assert norm.weight.grad.isfinite().all()


def test_nothing_that_a_run_leaves_is_pickled(pictures: Path, tmp_path: Path) -> None:
    train(config(pictures, epochs=1, warmup=0), folder=tmp_path)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["best.safetensors", "config.toml", "last.resume.safetensors", "last.safetensors", "results.csv"]
    for path in (tmp_path / "weights").iterdir():
        content = path.read_bytes()
        assert content[8:9] == b"{"
        assert int.from_bytes(content[:8], "little") < len(content)


@pytest.mark.slow
def test_no_version_is_compared_as_text_and_no_module_ends_the_program() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                assert "__version__" not in ast.unparse(node), path
            if isinstance(node, ast.Call) and path.parent.name != "cli" and path.name != "__main__.py":
                assert ast.unparse(node.func) not in {"sys.exit", "exit", "quit", "os._exit"}, path
            if isinstance(node, ast.Call) and "training" in path.relative_to(SOURCE).parts:
                assert ast.unparse(node.func) not in {"torch.save", "torch.load", "pickle.load", "pickle.loads"}, path


def test_no_error_is_swallowed_without_a_word() -> None:
    for path in (SOURCE / "training").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}"
                if "Exception" in ast.unparse(node.type).split("."):  # of other projects' packages: passed on, or told
                    body = ast.unparse(ast.Module(node.body, []))
                    assert path.name == "progress.py", f"{path}:{node.lineno}"
                    assert "raise " in body or "self._warn(" in body, f"{path}:{node.lineno}"


def test_classes_have_names_and_background_is_none_of_them(pictures: Path) -> None:
    made = training_pictures(pictures)
    assert made.annotations.class_map == CLASSES
    labels = np.concatenate([record.labels for record in made.annotations])
    assert set(labels.tolist()) == {0, 1}
