"""What a model file says: classes, default boxes, preprocessing, post-processing, and the result type."""
