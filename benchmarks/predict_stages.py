"""Where the time of one prediction goes: decoding, resizing, network, post-processing, on one JPEG file.

    python benchmarks/predict_stages.py [PICTURE] [--quality 90] [--model ssdlite300-coco] [--engine onnxruntime|torch]

Stages are timed within whole predictions, one after another, so each meets the caches as the others left them; timed
alone in a loop they look up to twice as fast. "Pillow alone" decodes the same bytes without anything of ours, between
two runs of the network, as the stage "decode" is. Without a picture, an example is written as a 500 × 375 JPEG first.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from multibox import Detector
from multibox.pictures.read import read_picture
from multibox.spec.options import PictureOptions
from multibox.spec.pipeline import Pipeline

EXAMPLE = Path(__file__).parents[1] / "examples" / "coffee.png"
STAGES = ("decode", "resize", "network", "post-processing")
ALONE = "Pillow alone"


def measure(detector: Detector, path: Path, *, conf: float, repeats: int) -> list[list[float]]:
    pipeline, options = Pipeline(detector.card), PictureOptions(conf=conf)
    content = path.read_bytes()
    rows = []
    for _ in range(repeats):
        marks = [time.perf_counter()]
        rgb = read_picture(path)
        marks.append(time.perf_counter())
        prepared = pipeline.prepare(rgb)
        marks.append(time.perf_counter())
        offsets, logits = detector.engine.run(prepared.tensor[None])
        marks.append(time.perf_counter())
        pipeline.finish(offsets[0], logits[0], prepared, options)
        marks.append(time.perf_counter())
        detector.engine.run(prepared.tensor[None])
        begun = time.perf_counter()
        Image.open(io.BytesIO(content)).load()
        alone = time.perf_counter() - begun
        detector.engine.run(prepared.tensor[None])
        rows.append([1e3 * seconds for seconds in (*(b - a for a, b in itertools.pairwise(marks)), alone)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", nargs="?", type=Path)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--model", default="ssdlite300-coco")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--conf", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.picture or Path(folder) / "coffee.jpg"
        if arguments.picture is None:
            Image.open(EXAMPLE).convert("RGB").resize((500, 375)).save(path, quality=arguments.quality)
        detector = Detector(arguments.model, engine=arguments.engine)
        measure(detector, path, conf=arguments.conf, repeats=10)
        rows = measure(detector, path, conf=arguments.conf, repeats=arguments.repeats)
        print(f"{path.name}: {path.stat().st_size:,} bytes; {len(rows)} predictions, {arguments.engine}, medians")
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    for name, value in zip((*STAGES, ALONE), medians, strict=True):
        print(f"{name:16} {value:6.2f} ms")
    around = [(sum(row[:4]) - row[2], row[2]) for row in rows]
    print(f"around the network / network: {statistics.median(a / n for a, n in around):.1%}")
    print(f"around the network / total:   {statistics.median(a / (a + n) for a, n in around):.1%}")


if __name__ == "__main__":
    main()
