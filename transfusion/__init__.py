"""Unified multimodal models in JAX: one Transformer writes text token by token and draws images by flow matching."""

from typing import Any

from transfusion.version import __version__

__all__ = ["Run", "__version__", "load_run"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import transfusion.sequence` alone stays light.
    if name in ("Run", "load_run"):
        from transfusion import api

        return getattr(api, name)
    raise AttributeError(f"module 'transfusion' has no attribute {name!r}")
