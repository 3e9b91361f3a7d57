"""ImPart as a library: `import impart_core as impart`.

The names below are imported when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from impart_core.artifacts.delta import Delta
    from impart_core.base.errors import ImpartError
    from impart_core.blocks.request import CompressConfig
    from impart_core.engine.library import (
        compress,
        evaluate,
        load_model,
        load_state_dict,
        open_delta,
        quantize,
        reconstruct,
    )
    from impart_core.engine.library_merge import merge
    from impart_core.engine.library_search import search
    from impart_core.evaluation.options import MeasureOptions
    from impart_core.methods.base import METHODS, Coding, Projection
    from impart_core.store.store import Store

__version__ = "0.1.0"
_VERBS = ("compress", "evaluate", "load_model", "load_state_dict", "open_delta", "quantize", "reconstruct")
_HOMES = {
    **dict.fromkeys(_VERBS, "impart_core.engine.library"),
    **dict.fromkeys(("METHODS", "Coding", "Projection"), "impart_core.methods.base"),
    "CompressConfig": "impart_core.blocks.request",
    "Delta": "impart_core.artifacts.delta",
    "ImpartError": "impart_core.base.errors",
    "MeasureOptions": "impart_core.evaluation.options",
    "Store": "impart_core.store.store",
    "merge": "impart_core.engine.library_merge",
    "search": "impart_core.engine.library_search",
}
__all__ = [
    "METHODS",
    "Coding",
    "CompressConfig",
    "Delta",
    "ImpartError",
    "MeasureOptions",
    "Projection",
    "Store",
    "compress",
    "evaluate",
    "load_model",
    "load_state_dict",
    "merge",
    "open_delta",
    "quantize",
    "reconstruct",
    "search",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "METHODS":
        import_module("impart_core.methods")  # registers them
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
