"""Names for the classes of foreign weights."""

from __future__ import annotations

from multibox.errors import ContractError
from multibox.spec.classes import COCO_CLASSES, ClassMap

__all__ = ["COCO_IN_ORDER", "COCO_WITH_UNUSED", "class_names"]

COCO_IN_ORDER = ClassMap(COCO_CLASSES.names)
"""The 80 classes, numbered without the gaps of COCO's ids."""


_COCO = dict(zip(COCO_CLASSES.ids, COCO_CLASSES.names, strict=True))
COCO_WITH_UNUSED = ClassMap.from_ids({i: _COCO.get(i, f"unused {i}") for i in range(1, max(COCO_CLASSES.ids) + 1)})
"""All 90 ids, as torchvision's heads have them."""


def class_names(count: int, given: ClassMap | None, *known: ClassMap | None) -> ClassMap:
    """The given names, else the first known ones for so many classes, else made-up ones.

    Args:
        count: classes of the weights, background not counted.
        given: by the user.
        known: what the file or its project says.

    Raises:
        ContractError: another number of names was given.
    """
    if given is not None and len(given) != count:
        raise ContractError(f"{len(given)} class names for weights with {count} classes (background not counted)")
    fitting = (names for names in known if names is not None and len(names) == count)
    return given or next(fitting, None) or ClassMap(tuple(f"class {i}" for i in range(count)))
