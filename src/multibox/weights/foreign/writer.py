"""Describes a foreign network for `graph_ssd`, layer by layer, while its tensors are taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from multibox.errors import ContractError
from multibox.models.graph import IMAGE, key_of
from multibox.models.network import DetectionNetwork
from multibox.models.registry import create_model
from multibox.spec.anchors import AnchorSpec
from multibox.spec.postprocess import DEFAULT_VARIANCES, PostprocessSpec, Variances
from multibox.spec.preprocess import Preprocess

__all__ = ["GraphWriter"]

Branch = list[dict[str, Any]]


class GraphWriter:
    """Layers are added with the prefix of their tensors in the foreign file, which gives channels, kernels and groups.

    A method returns the name of the layer's output. The layer takes the output `last`, which is that of the layer
    before, unless it is set to another.

    Args:
        tensors: of the foreign file, by name.
        title: of the foreign network, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], title: str) -> None:
        self._tensors, self._title = tensors, title
        self._channels = {IMAGE: 3}
        self._layers: list[dict[str, Any]] = []
        self._heads: list[dict[str, Any]] = []
        self._taken: dict[str, str] = {}  # our prefix -> theirs
        self._orders: dict[str, tuple[bool, bool]] = {}  # our prefix -> background is last, channels are output-major
        self.last = IMAGE

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ContractError(f"the file has no tensor {name!r}, so it is not {self._title}")
        return self._tensors[name]

    def _conv(self, theirs: str, channels: int, *, bias: bool = True, **window: int) -> dict[str, Any]:
        weight = self._tensor(f"{theirs}.weight")
        if (
            weight.dim() != 4
            or 0 in weight.shape
            or channels % weight.shape[1]
            or weight.shape[0] % (channels // weight.shape[1])
        ):
            raise ContractError(f"{theirs}.weight is {list(weight.shape)}, which takes no {channels} channels")
        same = bool(window.pop("same", False))
        sides = {name: [value, value] for name, value in window.items()}
        return {
            "op": "conv",
            "channels": weight.shape[0],
            "kernel": list(weight.shape[2:]),
            "groups": channels // weight.shape[1],
            "bias": bias,
            **({"same": True} if same else {}),
            **sides,
        }

    def channels_of(self, output: str) -> int:
        """The number of channels of an output."""
        return self._channels[output]

    def _add(self, name: str, layer: dict[str, Any], inputs: Sequence[str], channels: int) -> str:
        self._layers.append({"name": name, "inputs": list(inputs), **layer})
        self._channels[name] = channels
        self.last = name
        return name

    def conv(self, theirs: str, *, bias: bool = True, **window: int) -> str:
        """A convolution; `window` has stride, pad and dilation where they are not 1, 0 and 1, for height and width; or
        `same`, for TensorFlow's padding in place of a pad.
        """
        taken = self.last
        layer = self._conv(theirs, self._channels[taken], bias=bias, **window)
        self._taken[f"features.layers.{key_of(theirs)}"] = theirs
        return self._add(theirs, layer, [taken], layer["channels"])

    def normed(self, conv: str, norm: str, *, act: str = "", eps: float = 1e-5, **window: int) -> str:
        """A convolution without bias, its batch normalisation, and perhaps a function of activation."""
        self.conv(conv, bias=False, **window)
        self.norm(norm, eps=eps)
        return self.plain(act, f"{norm}.{act}") if act else self.last

    def norm(self, theirs: str, *, eps: float = 1e-5) -> str:
        """Batch normalisation."""
        taken = self.last
        self._tensor(f"{theirs}.running_var")
        self._taken[f"features.layers.{key_of(theirs)}"] = theirs
        return self._add(theirs, {"op": "norm", "eps": eps, "affine": True}, [taken], self._channels[taken])

    def l2norm(self, theirs: str) -> str:
        """Normalisation over the channels with a factor for each, which is `theirs.weight`."""
        self._taken[f"features.layers.{key_of(theirs)}"] = theirs
        return self._add(theirs, {"op": "l2norm"}, [self.last], self._channels[self.last])

    def plain(self, op: str, name: str, *of: str, **more: Any) -> str:
        """An operation without weights: relu, relu6, max_pool, add, concat."""
        while name in self._channels:  # one module may be called at several places
            name += "+"
        inputs = of or (self.last,)
        channels = [self._channels[one] for one in inputs]
        return self._add(name, {"op": op, **more}, inputs, sum(channels) if op == "concat" else channels[0])

    def blocks(self, name: str, tap: str, *, size: int, pad: int) -> str:
        """The blocks of size × size places of a map, a place each, with the channels of all their places."""
        self._layers.append({"name": name, "inputs": [tap], "op": "blocks", "size": size, "pad": pad})
        self._channels[name] = self._channels[tap] * size**2
        return name

    def pool(self, name: str, kernel: int, stride: int, pad: int = 0, *, ceil: bool) -> str:
        """Maximum pooling."""
        window = {key: [value, value] for key, value in (("kernel", kernel), ("stride", stride), ("pad", pad))}
        return self.plain("max_pool", name, **window, ceil=ceil)

    def head(
        self,
        tap: str,
        *,
        offsets: Sequence[Any],
        logits: Sequence[Any],
        background_last: bool = False,
        output_major: bool = False,
        eps: float = 1e-5,
    ) -> None:
        """Predictions from a map.

        Args:
            tap: the output that they read.
            offsets, logits: the layers of the branches, each a name of ours for an operation ("relu"), or a prefix of
                theirs with its padding, and False behind it where it has no bias; the prefix of a batch normalisation
                goes without padding.
            background_last: the last class score of a box is background's; otherwise the first.
            output_major: channel = output · boxes + box; otherwise box · outputs + output.
            eps: of batch normalisation.
        """
        level, made = len(self._heads), {}
        for kind, steps in (("offsets", offsets), ("logits", logits)):
            branch: Branch = []
            channels = self._channels[tap]
            for step in steps:
                if step in ("relu", "relu6"):
                    branch.append({"name": f"{step}{len(branch)}", "op": step})
                    continue
                theirs, pad, *bias = step if isinstance(step, tuple) else (step, None)
                if pad is None:
                    layer: dict[str, Any] = {"op": "norm", "eps": eps, "affine": True}
                else:
                    layer = self._conv(theirs, channels, pad=pad, bias=bias != [False])
                    channels = layer["channels"]
                self._taken[f"heads.0.{kind}.{level}.{key_of(theirs)}"] = theirs
                branch.append({"name": theirs, **layer})
            made[kind] = branch
            if (background_last and kind == "logits") or output_major:
                last = f"heads.0.{kind}.{level}.{key_of(branch[-1]['name'])}"
                self._orders[last] = (kind == "logits" and background_last, output_major)
        self._heads.append({"map": tap, **made})

    def outputs(self, boxes: int) -> int:
        """Class scores of a box, from the first head with so many boxes at a cell."""
        return int(self._heads[0]["logits"][-1]["channels"]) // boxes

    def network(
        self,
        *,
        anchors: AnchorSpec,
        preprocess: Preprocess,
        postprocess: PostprocessSpec,
        variances: Variances = DEFAULT_VARIANCES,
    ) -> DetectionNetwork:
        """The network with the foreign weights.

        Args:
            anchors, preprocess, postprocess, variances: conventions of the foreign project.

        Raises:
            ContractError: a tensor that is missing, unknown or of another shape.
        """
        boxes = anchors.boxes_per_cell
        if len(boxes) != len(self._heads):
            raise ContractError(f"{len(self._heads)} levels instead of {len(boxes)}, so it is not {self._title}")
        outputs = {head["logits"][-1]["channels"] / count for head, count in zip(self._heads, boxes, strict=True)}
        each = {head["offsets"][-1]["channels"] / count for head, count in zip(self._heads, boxes, strict=True)}
        background = postprocess.activation == "softmax"
        if each != {4} or len(outputs) != 1 or (count := min(outputs)) != int(count) or count < 1 + background:
            raise ContractError(f"the heads are not those of {boxes} boxes at a cell, so it is not {self._title}")
        network = create_model(
            "graph_ssd",
            layers=self._layers,
            heads=self._heads,
            anchors=anchors.to_dict(),
            preprocess=preprocess.to_dict(),
            postprocess=postprocess.to_dict(),
            num_classes=int(count) - background,
            variances=list(variances),
        )
        self._fill(network, boxes)
        return network.eval()

    def _fill(self, network: DetectionNetwork, boxes: Sequence[int]) -> None:
        wrong, used, state, expected = [], set(), {}, network.state_dict()
        for key, value in expected.items():
            ours, _, kind = key.rpartition(".")
            theirs = f"{self._taken[ours]}.{kind}"
            if theirs not in self._tensors:
                if kind == "num_batches_tracked":  # not written before 2018
                    state[key] = value
                else:
                    wrong.append(f"{theirs} is missing")
                continue
            given = self._tensors[theirs]
            used.add(theirs)
            if given.shape == value.shape:
                state[key] = given.to(value.dtype)
                if ours in self._orders:
                    state[key] = _box_major(state[key], boxes[int(ours.split(".")[3])], *self._orders[ours])
            else:
                wrong.append(f"{theirs} is {list(given.shape)} instead of {list(value.shape)}")
        wrong += [f"{name} is unknown" for name in self._tensors if name not in used]
        if wrong:
            shown = "; ".join(wrong[:4]) + (f"; {len(wrong) - 4} more" if len(wrong) > 4 else "")
            raise ContractError(f"the tensors are not those of {self._title}: {shown}")
        network.load_state_dict(state)


def _box_major(values: Tensor, boxes: int, background_last: bool, output_major: bool) -> Tensor:
    """The channels (first axis) of a head in our order: by box, then output, background first."""
    rest = values.shape[1:]
    by_box = values.reshape(-1, boxes, *rest).transpose(0, 1) if output_major else values.reshape(boxes, -1, *rest)
    return (by_box.roll(1, 1) if background_last else by_box).reshape(values.shape)
