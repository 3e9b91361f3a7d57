"""Merge methods: one pure function a method; importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from impart_core.merging.method import MERGE_METHODS, MergeMethod

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["MERGE_METHODS", "MergeMethod"]
