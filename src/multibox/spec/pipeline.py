"""What happens to a picture before the network and to its output after it: the same for every engine and every verb."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multibox.spec.card import ModelCard
from multibox.spec.detections import Detections
from multibox.spec.options import PictureOptions
from multibox.spec.postprocess import PostprocessSpec, postprocess_np, suppress_np
from multibox.spec.preprocess import Geometry

__all__ = ["Pipeline", "Prepared"]

FloatArray = NDArray[np.float32]
REMEMBERED = 64  # different options whose meaning for the model is kept


class Prepared(NamedTuple):
    """One picture ready for the network.

    Attributes:
        tensor: network input [3, H, W] float32.
        geometry: the way back to pixels of the picture.
    """

    tensor: FloatArray
    geometry: Geometry


class Pipeline:
    """Preparation and post-processing as a model's card describes them. It has no state that changes.

    Args:
        card: of the model.

    Raises:
        ModelFileError: the card's default boxes are not those it was made with.
    """

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self._anchors_cxcywh = card.anchors_cxcywh()
        self._resolved = lru_cache(REMEMBERED)(self._resolve)

    def prepare(self, rgb: NDArray[np.uint8]) -> Prepared:
        """Network input and geometry of an upright picture [h, w, 3] uint8 RGB."""
        return Prepared(*self.card.preprocess(rgb))

    def require(self, options: PictureOptions) -> None:
        """Check options against the model before a picture is read.

        Raises:
            ClassMapError: a class that the model does not know.
        """
        self._resolved(options)

    def finish(
        self,
        offsets: FloatArray,
        logits: FloatArray,
        prepared: Prepared,
        options: PictureOptions,
        *,
        path: str | None = None,
        source: Any = None,
    ) -> Detections:
        """The detections of one picture, from the network's folded prediction.

        Args:
            offsets: [A, 4] against the default boxes.
            logits: [A, K].
            prepared: from `prepare`.
            options: what was asked of this picture; other pictures of the batch may have others.
            path: of the picture, and
            source: where its pixels can be had again, for the result.

        Raises:
            ContractError: shapes that do not agree with the card, or a value that is not finite.
        """
        spec, classes = self._resolved(options)
        found = postprocess_np(
            offsets, logits, self._anchors_cxcywh, variances=self.card.variances, spec=spec, classes=classes
        )
        return self.located(*found, prepared.geometry, path=path, source=source)

    def finish_decoded(
        self, unit_xyxy: FloatArray, scores: FloatArray, prepared: Prepared, options: PictureOptions
    ) -> Detections:
        """As `finish`, from boxes [A, 4] and scores [A, C] that have been decoded; only suppression is left."""
        spec, classes = self._resolved(options)
        return self.located(*suppress_np(unit_xyxy, scores, spec=spec, classes=classes), prepared.geometry)

    def located(
        self,
        unit_xyxy: FloatArray,
        scores: FloatArray,
        labels: NDArray[np.int64],
        geometry: Geometry,
        *,
        path: str | None = None,
        source: Any = None,
    ) -> Detections:
        """Detections in the network's unit frame [N, 4] with scores [N] and labels [N], in pixels of the picture."""
        boxes_xyxy = geometry.to_picture(unit_xyxy)
        size_hw = geometry.picture_size_hw
        return Detections(boxes_xyxy, labels, scores, self.card.class_map, size_hw, path=path, source=source)

    def _resolve(self, options: PictureOptions) -> tuple[PostprocessSpec, tuple[int, ...] | None]:
        return options.applied_to(self.card.postprocess), options.selected(self.card.class_map)
