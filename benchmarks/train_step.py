"""One training step (forward, loss, backward, optimiser) beside torchvision's, and the share of loss and matching.

    python benchmarks/train_step.py [--model ssdlite|ssd300] [--batch 8] [--device cpu|cuda] [--rounds 8]

The two alternate within one run, on the same pictures and boxes, each as its own references train it: torchvision's
network takes a list of pictures that it normalises and resizes itself, so both get pictures of the network's size.
For SSDLite, backbone and input are torchvision's MobileNetV3-Large at 320 × 320 on one side and this project's
MobileNetV2 at the same size on the other, since there is no common one; `--model ssd300` compares VGG16 with VGG16.

    python benchmarks/train_step.py --throughput DATA [--model ssd300] [--batch 64] [--device cuda] [--amp bf16]

measures whole epochs of real training instead, with decoding and augmentation: images a second and the share of time
that the loop waits for data.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torchvision.models import detection

from multibox.core.loss import multibox_loss
from multibox.core.structures import Target
from multibox.models.registry import create_model

OURS = {"ssdlite": ("ssdlite300_mobilenetv2", 320), "ssd300": ("ssd300_vgg16", 300)}
CLASSES, OBJECTS = 20, 8


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def truth(batch: int, generator: torch.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for _ in range(batch):
        corner = torch.rand(OBJECTS, 2, generator=generator) * 0.6
        side = 0.05 + torch.rand(OBJECTS, 2, generator=generator) * 0.35
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        found.append((torch.cat([corner, corner + side], dim=1), labels))
    return found


class Ours:
    def __init__(self, name: str, batch: int, device: torch.device) -> None:
        builder, side = OURS[name]
        self.device, self.size = device, side
        network = create_model(builder, num_classes=CLASSES, size_hw=[side, side])
        self.network = network.to(device, memory_format=torch.channels_last).train()
        self.anchors = self.network.anchors_cxcywh()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9)
        self.loss_seconds: list[float] = []

    def step(self, pictures: torch.Tensor, boxes: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        images = pictures.contiguous(memory_format=torch.channels_last)
        targets = [Target(unit_xyxy, labels) for unit_xyxy, labels in boxes]
        raw = self.network(images)
        synchronise(self.device)
        started = time.perf_counter()
        losses = multibox_loss(raw, self.anchors, targets, activation=self.network.spec.postprocess.activation)
        synchronise(self.device)
        self.loss_seconds.append(time.perf_counter() - started)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()


class Theirs:
    def __init__(self, name: str, batch: int, device: torch.device) -> None:
        make = detection.ssdlite320_mobilenet_v3_large if name == "ssdlite" else detection.ssd300_vgg16
        self.network = make(weights=None, weights_backbone=None, num_classes=CLASSES + 1).to(device).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9)

    def step(self, pictures: torch.Tensor, boxes: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        side = pictures.shape[-1]
        targets = [{"boxes": unit_xyxy * side, "labels": labels + 1} for unit_xyxy, labels in boxes]
        losses = self.network(list(pictures), targets)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()


def compare(name: str, batch: int, device: torch.device, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    side = OURS[name][1]
    pictures = torch.rand(batch, 3, side, side, generator=generator).to(device)
    boxes = [(b.to(device), labels.to(device)) for b, labels in truth(batch, generator)]
    sides: dict[str, Any] = {"multibox": Ours(name, batch, device), "torchvision": Theirs(name, batch, device)}
    seconds: dict[str, list[float]] = {key: [] for key in sides}
    for number in range(rounds + 2):
        for key, one in sides.items():
            synchronise(device)
            started = time.perf_counter()
            one.step(pictures, boxes)
            synchronise(device)
            if number >= 2:
                seconds[key].append(time.perf_counter() - started)
    for key, values in seconds.items():
        print(f"{key:12} {1e3 * statistics.median(values):9.1f} ms a step of {batch} ({name}, {device})")
    ratio = statistics.median(b / a for a, b in zip(seconds["multibox"], seconds["torchvision"], strict=True))
    share = statistics.median(
        a / b for a, b in zip(sides["multibox"].loss_seconds[2:], seconds["multibox"], strict=True)
    )
    print(f"torchvision / multibox: {ratio:.2f};  loss and matching: {share:.1%} of our step")


def throughput(arguments: argparse.Namespace) -> None:
    from multibox.training.config import TrainConfig, merge
    from multibox.training.run import train

    builder = OURS[arguments.model][0]
    options = {
        "data": arguments.throughput,
        "model": builder,
        "val_split": "none",
        "epochs": 4,
        "warmup": 1,
        "lr0": 1e-4,
        "batch": arguments.batch,
        "device": arguments.device,
        "amp": arguments.amp,
        "workers": arguments.workers,
        "plots": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        result = train(merge(TrainConfig(), options), folder=Path(folder))
    last = result.history[-1]  # earlier epochs fill caches and choose kernels
    print(f"{last['images_per_second']:.0f} images/s, {last['waiting_share']:.1%} of the time waiting for data")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=tuple(OURS), default="ssdlite")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--throughput", metavar="DATA")
    parser.add_argument("--amp", default="none")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.throughput:
        throughput(arguments)
    else:
        compare(arguments.model, arguments.batch, torch.device(arguments.device), arguments.rounds)


if __name__ == "__main__":
    main()
