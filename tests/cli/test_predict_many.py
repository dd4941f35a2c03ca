"""`multibox predict` on folders and on large pictures."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multibox.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
Call = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`multibox predict ARGS --json` in an empty folder: exit status, rows and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path) -> tuple[int, list[dict[str, Any]], str]:
        monkeypatch.setattr(sys, "argv", ["multibox", "predict", *map(str, args), "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("multibox")]
        return int(stop.value.code or 0), [json.loads(line) for line in captured.out.splitlines()], captured.err

    return call


@pytest.mark.slow
def test_a_folder_is_the_same_with_any_number_of_workers(predict: Call) -> None:
    Path("in").mkdir()
    for i in range(9):
        Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((200 + i, 150)).save(f"in/{i}.jpg")
    Path("in/4a.jpg").write_bytes(b"no picture")
    alone = predict("in", "workers=1")
    assert alone[0] == 1
    assert [row["path"] for row in alone[1]] == [str(Path("in") / f"{i}.jpg") for i in range(9)]
    assert alone[2].splitlines()[0] == "9 pictures, 9 objects"
    assert alone[2].splitlines()[1].startswith(f"multibox: {Path('in/4a.jpg')}: is not a picture")
    assert predict("in") == predict("in", "workers=3") == alone
    code, rows, _ = predict("in", "save=true", "save_csv=true")
    assert (code, rows) == (1, alone[1])
    drawn = sorted(path.name for path in Path("runs/predict").glob("*.jpg"))
    assert drawn == [f"{i}.jpg" for i in range(9)]


def test_small_objects_with_tiles(predict: Call) -> None:
    picture = Image.new("RGB", (1600, 1200), (127, 127, 127))
    picture.paste(Image.open(EXAMPLES / "chelsea.png").convert("RGB").resize((150, 100)), (1000, 700))
    picture.save("large.png")
    assert predict("large.png", "classes=cat")[1][0]["detections"] == []
    (row,) = predict("large.png", "classes=cat", "tile=400", "tile_overlap=0.4")[1]
    assert len(row["detections"]) == 1
    box = row["detections"][0]["box"]
    assert 990 <= box["x1"] <= box["x2"] <= 1160
    assert 690 <= box["y1"] <= box["y2"] <= 810


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tile=31", "31 is not in the range x>=32."),
        ("tile_overlap=1", "1.0 is not in the range 0<=x<1."),
        ("workers=0", "0 is not in the range x>=1."),
    ],
)
def test_refusals(predict: Call, option: str, message: str) -> None:
    code, rows, err = predict(EXAMPLES / "chelsea.png", option)
    assert (code, rows) == (2, [])
    assert message in err
