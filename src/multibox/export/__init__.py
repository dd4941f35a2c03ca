"""Export to deployment formats. Needs the `export` extra.

`multibox.export(MODEL, …)` is the function `multibox.verbs.export`, `multibox.export.onnx` a module of this package.
Importing any of its modules puts the package in the function's place, so the package can be called as well.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """https://docs.python.org/3/reference/datamodel.html#customizing-module-attribute-access"""

    def __call__(self, *given: Any, **options: Any) -> Any:
        """See `multibox.verbs.export`."""
        from multibox.verbs import export

        return export(*given, **options)


sys.modules[__name__].__class__ = _CallablePackage
