"""Post-processing of SSD300 with 81 outputs as a share of its forward pass, on two threads.

    python benchmarks/postprocess_share.py

Three kinds of logits: those of the untrained network, on which nearly all of the 700,000 scores are candidates; uniform
noise, the worst case; and sharp ones as a trained network gives, with a few hundred candidates.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from multibox.core.postprocess import postprocess
from multibox.core.structures import Stage
from multibox.models import create_model
from multibox.spec.postprocess import postprocess_np


def median_ms(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    detector = create_model("ssd300_vgg16", num_classes=80, scales="coco").eval()
    images = torch.rand(1, 3, 300, 300) * 255 - 120
    forward = median_ms(lambda: detector(images), 7)
    print(f"forward pass {forward:.0f} ms")
    spec, anchors, variances = detector.spec.postprocess, detector.anchors_cxcywh(), detector.spec.variances
    untrained = detector(images)[-1]
    noise = torch.randn_like(untrained.logits)
    sharp = noise.clone()
    sharp[..., 0] += 9
    busy = torch.randperm(8732)[:300]
    sharp[0, busy, torch.randint(1, 81, (300,))] += 10
    for name, logits in (("untrained", untrained.logits), ("noise", noise), ("sharp", sharp)):
        stage = Stage(untrained.offsets, logits)
        arrays = (stage.offsets[0].numpy(), logits[0].numpy(), anchors.numpy())
        in_torch = median_ms(lambda stage=stage: postprocess(stage, anchors, variances=variances, spec=spec), 15)
        in_numpy = median_ms(lambda a=arrays: postprocess_np(*a, variances=variances, spec=spec), 15)
        candidates = int((logits.softmax(-1)[..., 1:] > spec.score_threshold).sum())
        print(
            f"{name:10} {candidates:7} candidates: torch {in_torch:5.1f} ms = {in_torch / forward:.1%}, "
            f"NumPy {in_numpy:5.1f} ms = {in_numpy / forward:.1%} of the forward pass"
        )


if __name__ == "__main__":
    main()
