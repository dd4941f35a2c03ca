"""A network as everything outside training sees it: one stage of predictions against the default boxes."""

from __future__ import annotations

from torch import Tensor, nn

from multibox.core.codec import fold
from multibox.core.structures import Stage
from multibox.models.network import DetectionNetwork

__all__ = ["FoldedNetwork"]


class FoldedNetwork(nn.Module):
    """A network with the fold of its stages behind it; engines, exports and checks run this and never see `Raw`.

    Args:
        network: its default boxes for its own input size become part of this module.
    """

    anchors_cxcywh: Tensor

    def __init__(self, network: DetectionNetwork) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("anchors_cxcywh", network.anchors_cxcywh(), persistent=False)

    def forward(self, images: Tensor) -> Stage:
        """[B, 3, H, W] preprocessed pictures -> offsets [B, A, 4] and logits [B, A, K] against the default boxes."""
        spec = self.network.spec
        return fold(
            self.network(images),
            self.anchors_cxcywh,
            spec.variances,
            gates=spec.gates,
            activation=spec.postprocess.activation,
            mean_scores=spec.mean_scores,
        )
