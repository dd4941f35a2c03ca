"""The light pyramid against SSDLite300: the same data, start, schedule and seeds.

    python benchmarks/pyramid.py DATA WORK [--sets bccd voc] [--variants ssdlite bpn1 bpn2 bpn3] [--seeds 0 1 2]
    python benchmarks/pyramid.py DATA WORK --variants "bpn3 ious=[0.5,0.55,0.6]" …

DATA holds the folders `bccd` and `voc_sample`. Every variant starts from the backbone of the shipped model, with a neck
and heads of random weights, and learns by the default recipe. A variant is a name, then arguments of the builder or
options of training (KEY=VALUE). Runs are left in WORK; a line per run is printed, and appended to WORK/pyramid.md. With
more than one variant the others' gain over the first follows, with its paired interval over pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import multibox
from multibox.catalogue import DEFAULT_MODEL
from multibox.evaluation import EvaluationSet, load_evaluation
from multibox.evaluation.uncertainty import measure
from multibox.models.registry import arguments_of

DATA: dict[str, tuple[str, dict[str, Any], str]] = {  # folder, options of training, and the split to measure
    "bccd": ("bccd", {"split": "train,val", "val_split": "none"}, "test"),
    "voc": ("voc_sample", {"split": "train", "val_split": "none"}, "val"),
}
GAINS = ("ap", "ap75", "ap_small")
BUILDERS = {
    "ssdlite": ("ssdlite300_mobilenetv2", {}),
    **{f"bpn{stages}": ("bpn300_mobilenetv2", {"stages": stages}) for stages in (1, 2, 3)},
}


def options_of(variant: str) -> dict[str, Any]:
    """The options of training that a variant stands for."""
    name, *words = variant.split()
    builder, arguments = BUILDERS[name]
    options: dict[str, Any] = {"model": builder, "backbone": DEFAULT_MODEL}
    for key, value in (word.split("=", 1) for word in words):
        if key in arguments_of(builder):
            arguments = {**arguments, key: json.loads(value)}
        else:
            options[key] = value
    return {**options, "arguments": json.dumps(arguments)}


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    yield "| set | variant | seed | AP | AP50 | AP75 | AP small | seconds of training |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name in arguments.sets:
        folder, options, split = DATA[name]
        data = arguments.data / folder
        found: dict[tuple[str, int], EvaluationSet] = {}
        for seed in arguments.seeds:
            for variant in arguments.variants:
                started = time.perf_counter()
                run = multibox.train(
                    data, seed=seed, project=str(arguments.work / name), quiet=True, **options, **options_of(variant)
                )
                seconds = time.perf_counter() - started
                done = multibox.validate(run.best, data, split=split, project=str(arguments.work / name))
                found[variant, seed] = load_evaluation(done.folder)
                coco = done.results.coco
                numbers = f"{coco.ap:.4f} | {coco.ap50:.4f} | {coco.ap75:.4f} | {coco.ap_small:.4f}"
                yield f"| {name} | {variant} | {seed} | {numbers} | {seconds:.0f} |"
        first, *others = arguments.variants
        for variant in others:
            yield gain(name, variant, [(found[first, seed], found[variant, seed]) for seed in arguments.seeds])


def gain(name: str, variant: str, pairs: Sequence[tuple[EvaluationSet, EvaluationSet]]) -> str:
    """What a variant has more than the first one in the mean of the seeds, on the same drawn pictures for all."""
    count = len(pairs[0][0])
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=1000).T
    weights = np.concatenate([np.ones((count, 1)), draws], axis=1)
    apart = [(measure(before, GAINS, weights), measure(after, GAINS, weights)) for before, after in pairs]
    parts = []
    for metric in GAINS:
        each = np.mean([after[metric] - before[metric] for before, after in apart], axis=0)
        low, high = np.nanquantile(each[1:], (0.025, 0.975))
        parts.append(f"{each[0]:+.4f} {metric} ({low:+.4f} … {high:+.4f})")
    return f"{name}, mean of {len(pairs)} seeds: {variant} gains {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sets", nargs="+", choices=[*DATA], default=[*DATA])
    parser.add_argument("--variants", nargs="+", default=[*BUILDERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for row in rows(arguments):
        print(row, flush=True)
        with (arguments.work / "pyramid.md").open("a") as file:
            file.write(f"{row}\n")


if __name__ == "__main__":
    main()
