"""What limits the network: time, multiply-adds and bytes by operator class, beside what this machine can do at most.

    python benchmarks/operators.py [MODEL.onnx …] [--threads 2]

Times come from ONNX Runtime's own profile. The two bounds are measured in the same run: the rate of a large float32
matrix product by the same library and threads, and of copying memory far larger than the caches. Bytes are those of a
class's inputs, weights and outputs, so they are what would move if no cache kept anything.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from multibox.catalogue import CATALOGUE
from multibox.cpus import usable_cpus
from multibox.inference import Detector

RUNS = 60
PRODUCT_SIDE = 1536
COPIED_BYTES = 1 << 28
CLASSES = {
    "QGemm": "pointwise convolution",
    "ReorderInput": "memory layout",
    "ReorderOutput": "memory layout",
    "Transpose": "memory layout",
    "Reshape": "memory layout",
    "Concat": "memory layout",
    "QuantizeLinear": "to and from int8",
    "DequantizeLinear": "to and from int8",
    "Add": "addition",
    "QLinearAdd": "addition",
}


@dataclass
class Spent:
    """Milliseconds a run, multiply-adds and bytes of a class."""

    ms: float = 0.0
    multiply_adds: int = 0
    bytes: int = 0
    nodes: int = 0


def session(model: Path | bytes, threads: int, **changes: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in changes.items():
        setattr(options, key, value)
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def convolutions(optimised: Path) -> dict[str, tuple[str, int]]:
    """By node name: the class, and the multiply-adds for each output value."""
    graph = onnx.load(optimised).graph
    dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "QLinearConv"):
            weights = dims[node.input[1 if node.op_type == "Conv" else 3]]
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            window = math.prod(weights[2:])
            depthwise = group > 1
            kind = "depthwise" if depthwise else "pointwise" if window == 1 else f"{weights[2]}×{weights[3]}"
            found[node.name] = (f"{kind} convolution", window if depthwise else math.prod(weights[1:]))
    return found


def profiled(path: Path, image: np.ndarray, threads: int) -> tuple[float, dict[str, Spent]]:
    """Median milliseconds of a run, and what each class of operators took of it."""
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        profiled = session(
            path,
            threads,
            enable_profiling=True,
            profile_file_prefix=str(Path(folder) / "profile"),
            optimized_model_filepath=str(optimised),
        )
        for _ in range(RUNS):
            profiled.run(None, {"images": image})
        events = json.loads(Path(profiled.end_profiling()).read_text())
        known = convolutions(optimised)
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_node[event["name"].removesuffix("_kernel_time")].append(event)
    classes: dict[str, Spent] = defaultdict(Spent)
    for name, all_events in by_node.items():
        details = all_events[0]["args"]
        kind, each = known.get(name, (CLASSES.get(details["op_name"], details["op_name"]), 0))
        outputs = sum(math.prod(shape) for entry in details["output_type_shape"] for shape in entry.values())
        if details["op_name"] == "QGemm":
            each = next(iter(details["input_type_shape"][0].values()))[-1]
        spent = classes[kind]
        spent.ms += statistics.median(event["dur"] for event in all_events) / 1e3
        spent.multiply_adds += each * outputs
        spent.bytes += sum(int(details[key]) for key in ("activation_size", "parameter_size", "output_size"))
        spent.nodes += 1
    plain = session(path, threads)
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        plain.run(None, {"images": image})
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds), classes


def product_rate(threads: int) -> float:
    """Multiply-adds a second of a large float32 matrix product."""
    side = PRODUCT_SIDE
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    runner = session(model.SerializeToString(), threads)
    given = np.random.default_rng(0).random((side, side), np.float32)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        runner.run(None, {"a": given, "b": given})
        seconds.append(time.perf_counter() - started)
    return side**3 / min(seconds)


def copy_rate(threads: int) -> float:
    """Bytes a second, read and written, of copying."""
    parts = [(np.ones(COPIED_BYTES // threads, np.uint8), np.empty(COPIED_BYTES // threads, np.uint8))]
    parts += [(a.copy(), b.copy()) for a, b in parts * (threads - 1)]
    best = math.inf
    for _ in range(5):
        workers = [threading.Thread(target=np.copyto, args=(target, source)) for source, target in parts]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - started)
    return 2 * sum(source.nbytes for source, _ in parts) / best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["ssdlite300-coco"])
    parser.add_argument("--threads", type=int, default=usable_cpus())
    arguments = parser.parse_args()
    most, copied = product_rate(arguments.threads), copy_rate(arguments.threads)
    bounds = f"matrix product {most / 1e9:.1f} G multiply-adds/s, copying {copied / 1e9:.1f} GB/s"
    print(f"{arguments.threads} threads; {bounds}")
    for model in arguments.models:
        detector = Detector(model, engine="onnxruntime")
        path, size_hw = detector.path, detector.card.preprocess.size_hw
        image = np.random.default_rng(0).uniform(-1, 1, (1, 3, *size_hw)).astype(np.float32)
        total, classes = profiled(path, image, arguments.threads)
        work = sum(spent.multiply_adds for spent in classes.values())
        shipped = " (shipped)" if model in CATALOGUE else ""
        print(
            f"\n{detector.card.name}{shipped}: {total:.2f} ms, {work / 1e6:.0f} M multiply-adds, "
            f"{work / total / 1e6:.1f} G/s = {work / total * 1e3 / most:.0%} of the float32 product's rate\n"
        )
        print("| operators | nodes | ms | share | M multiply-adds | G/s | of the product's rate | MB | GB/s |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        sum_ms = sum(spent.ms for spent in classes.values())
        for kind, spent in sorted(classes.items(), key=lambda item: -item[1].ms):
            rate = spent.multiply_adds / spent.ms * 1e3
            work_cells = f"{spent.multiply_adds / 1e6:.1f} | {rate / 1e9:.1f} | {rate / most:.0%}"
            byte_cells = f"{spent.bytes / 1e6:.1f} | {spent.bytes / spent.ms / 1e6:.1f}"
            share = f"{spent.ms / sum_ms:.0%}"
            print(f"| {kind} | {spent.nodes} | {spent.ms:.2f} | {share} | {work_cells} | {byte_cells} |")


if __name__ == "__main__":
    main()
