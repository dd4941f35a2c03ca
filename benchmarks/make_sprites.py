"""A made-up data set in the manner of D2L's bananas: one banana somewhere on each of many photographs.

    python benchmarks/make_sprites.py FOLDER [--train 1000] [--val 100] [--size 256] [--seed 0]

Backgrounds are random parts of the example photographs, turned and recoloured; the banana is drawn, with random size,
turn, bend and colour. Writes a COCO data set with the splits train and val; the same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from multibox.data import Dataset, ImageRecord, write_dataset
from multibox.spec.classes import ClassMap

EXAMPLES = Path(__file__).parents[1] / "examples"
SUPERSAMPLING = 4
LENGTH = (0.16, 0.40)  # of the banana, of the picture's side; D2L's are of about this size


def backgrounds() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.png"))]


def background(photographs: list[Image.Image], rng: np.random.Generator, size: int) -> Image.Image:
    photograph = photographs[rng.integers(len(photographs))]
    side = int(rng.uniform(0.3, 1.0) * min(photograph.size))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    part = photograph.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    part = part.transpose(Image.Transpose(int(rng.integers(0, 7))))
    part = ImageEnhance.Color(part).enhance(rng.uniform(0.4, 1.4))
    return ImageEnhance.Brightness(part).enhance(rng.uniform(0.7, 1.2))


def banana(rng: np.random.Generator, length: float) -> Image.Image:
    """A drawn banana with transparency, cut to its edges."""
    scale = SUPERSAMPLING * length
    bend, width = rng.uniform(0.7, 1.6), rng.uniform(0.20, 0.30)
    turn = rng.uniform(0, 2 * math.pi)
    along = np.linspace(-1, 1, 40)
    angle = turn + along * bend / 2
    radius = 1 / bend
    middle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
    thick = width / 2 * np.clip(1 - np.abs(along) ** 3, 0.12, None)
    outward = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    outline = np.concatenate([middle + outward * thick[:, None], (middle - outward * thick[:, None])[::-1]])
    low = outline.min(axis=0)
    points = (outline - low) * scale + SUPERSAMPLING
    canvas = Image.new("RGBA", tuple(int(v) + 2 * SUPERSAMPLING for v in points.max(axis=0)))
    draw = ImageDraw.Draw(canvas)
    yellow = (int(rng.uniform(205, 250)), int(rng.uniform(175, 220)), int(rng.uniform(20, 90)))
    draw.polygon([tuple(p) for p in points], fill=(*yellow, 255))
    ridge = (middle + outward * thick[:, None] * 0.25 - low) * scale + SUPERSAMPLING
    shade = tuple(int(0.75 * v) for v in yellow)
    draw.line([tuple(p) for p in ridge], fill=(*shade, 255), width=max(1, int(0.03 * scale)))
    for end in (0, -1):
        x, y = (middle[end] - low) * scale + SUPERSAMPLING
        r = 0.04 * scale
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(70, 50, 20, 255))
    small = canvas.resize(
        (max(1, canvas.width // SUPERSAMPLING), max(1, canvas.height // SUPERSAMPLING)), Image.Resampling.LANCZOS
    )
    return small.crop(small.getchannel("A").point(lambda a: 255 if a > 127 else 0).getbbox())


def make(folder: Path, *, train: int, val: int, size: int, seed: int) -> Dataset:
    photographs, records = backgrounds(), []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(train + val):
        rng = np.random.default_rng((seed, number))
        picture = background(photographs, rng, size)
        sprite = banana(rng, rng.uniform(*LENGTH) * size)
        x, y = (int(rng.integers(0, max(1, size - side + 1))) for side in sprite.size)
        picture.paste(sprite, (x, y), sprite)
        name = f"images/{number:05d}.jpg"
        picture.save(folder / name, quality=92)
        box = [[x, y, min(size, x + sprite.width), min(size, y + sprite.height)]]
        split = "train" if number < train else "val"
        records.append(
            ImageRecord(name, number, (size, size), np.array(box, np.float32), np.zeros(1, np.int64), split=split)
        )
    return Dataset.from_records(records, ClassMap(("banana",)), root=folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dataset = make(arguments.folder, train=arguments.train, val=arguments.val, size=arguments.size, seed=arguments.seed)
    write_dataset(dataset, arguments.folder, format="coco", exist_ok=True)
    print(f"{len(dataset)} pictures in {arguments.folder}")


if __name__ == "__main__":
    main()
