"""Training: from a data set to a model file, interruptible at any moment.

`config` and `recipes` load without torch; everything else needs it.
"""
