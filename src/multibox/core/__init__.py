"""Detection mathematics on tensors: pure functions on boxes, anchors and raw predictions, on any device."""
