"""Does the control compute what our model computes?

Loads our weights and batch from the npz of `ours.py --dump`, compares the loss and the norm of every gradient, prints
the differences as JSON, and fails above the tolerance.

    python check_control.py dump.npz --size small
"""

import argparse
import json
import sys

import numpy as np
import torch
import work
from control import Control, load_batch

TOLERANCE = 1e-5
# The control's parameter -> our parameters that it holds, joined along its first axis. `{}` is the layer.
NAMES = {
    "embed.weight": ("parts/text/embed/table",),
    "logits.weight": ("parts/text/head/kernel",),
    "patch_in.weight": ("parts/image/embed/kernel",),
    "patch_in.bias": ("parts/image/embed/bias",),
    "patch_out.weight": ("parts/image/head/kernel",),
    "patch_out.bias": ("parts/image/head/bias",),
    "time.0.weight": ("parts/image/time/hidden",),
    "time.0.bias": ("parts/image/time/hidden_bias",),
    "time.2.weight": ("parts/image/time/out",),
    "time.2.bias": ("parts/image/time/out_bias",),
    "norm.scale": ("trunk/final_norm/trunk",),
    "blocks.{}.attention_norm.scale": ("trunk/blocks/trunk/attention_norm",),
    "blocks.{}.qkv.weight": tuple(f"trunk/blocks/trunk/{name}" for name in "qkv"),
    "blocks.{}.out.weight": ("trunk/blocks/trunk/o",),
    "blocks.{}.ffn_norm.scale": ("trunk/blocks/trunk/ffn_norm",),
    "blocks.{}.gate_up.weight": tuple(f"trunk/blocks/trunk/{name}" for name in ("gate", "up")),
    "blocks.{}.down.weight": ("trunk/blocks/trunk/down",),
}
TABLES = ("embed.weight",)  # rows are entries; every other matrix of ours is [in, out], torch's is [out, in]


def copy_weights(model: Control, arrays: dict[str, np.ndarray]) -> None:
    """Fills every parameter of the control; a leftover on either side is an error."""
    used = set()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parts = name.split(".")
        layer = int(parts[1]) if parts[0] == "blocks" else None
        pattern = name if layer is None else name.replace(f"blocks.{layer}.", "blocks.{}.")
        pieces = []
        for ours in NAMES[pattern]:
            used.add(f"param/{ours}")
            piece = arrays[f"param/{ours}"]
            piece = piece if layer is None else piece[layer]
            if piece.ndim == 3:  # attention's matrices keep heads apart: [D, H, K] in, [H, K, D] out
                rows = piece.shape[0] * (piece.shape[1] if pattern.endswith("out.weight") else 1)
                piece = piece.reshape(rows, -1)
            pieces.append(piece.T if piece.ndim == 2 and pattern not in TABLES else piece)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(np.concatenate(pieces))))
    left = {name for name in arrays if name.startswith("param/")} - used
    if left:
        raise ValueError(f"the control has no place for {sorted(left)}")


def norms(model: Control) -> dict[str, float]:
    """Norm of the gradient of each group of parameters, over all layers: names of the control without the layer."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        pattern = ".".join(["blocks", "{}", *parts[2:]]) if parts[0] == "blocks" else name
        squares[pattern] = squares.get(pattern, 0.0) + float(parameter.grad.double().square().sum())
    return {name: value**0.5 for name, value in squares.items()}


def compare(model: Control, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative difference of the loss and of each gradient's norm."""
    loss = model.loss(load_batch(arrays), torch.float32)
    loss.backward()
    wanted = float(arrays["loss"])
    differences = {"loss": abs(loss.item() - wanted) / abs(wanted)}
    for name, value in norms(model).items():
        wanted = float(np.sqrt(sum(float(arrays[f"norm/{ours}"]) ** 2 for ours in NAMES[name])))
        differences[name] = abs(value - wanted) / wanted
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump")
    parser.add_argument("--size", choices=work.SIZES, default="small")
    options = parser.parse_args()
    with np.load(options.dump, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    model = Control(work.SIZES[options.size])
    copy_weights(model, arrays)
    differences = compare(model, arrays)
    worst = max(differences, key=differences.__getitem__)
    print(json.dumps({"worst": worst, "relative": differences[worst], "differences": differences}))
    if differences[worst] > TOLERANCE:
        sys.exit(f"error: {worst} differs by {differences[worst]:.2e}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
