"""Weights of released checkpoints, in and out: see `python -m transfusion.interop --help` and `families.FAMILIES`."""
