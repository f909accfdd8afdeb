"""Unified multimodal models in JAX: one Transformer writes text token by token and draws images by flow matching."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Trained", "__version__", "Run", "experiment", "layouts", "load_run", "pictures", "train"]

# Where a public name lives. Loaded on first use: `import transfusion.sequence` alone stays light.
_HOMES = {
    "Trained": ("transfusion.api", "Trained"),
    "experiment": ("transfusion.api", "experiment"),
    "Run": ("transfusion.notebook", "Run"),
    "load_run": ("transfusion.notebook", "load_run"),
    "train": ("transfusion.train", ""),  # a module that can be called
    "layouts": ("transfusion.sequence.layouts", ""),
    "pictures": ("transfusion.evaluation.pictures", ""),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transfusion' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
