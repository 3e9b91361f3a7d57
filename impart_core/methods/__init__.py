"""Compression methods: one method = one file = one registered name.

Importing this package imports every file in it, and so registers every method; a new one is a new file.
"""

from importlib import import_module
from pkgutil import iter_modules

from impart_core.methods.base import METHODS, Coding, Method, Projection
from impart_core.quantization.options import QuantizeOptions

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

QUANTIZING = tuple(name for name in METHODS if issubclass(METHODS.get(name).options_model, QuantizeOptions))

__all__ = ["METHODS", "QUANTIZING", "Coding", "Method", "Projection"]
