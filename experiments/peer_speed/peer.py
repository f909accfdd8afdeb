"""transfusion-pytorch on the CPU: one training step, 64 text tokens, one image, one guided image.

Everything that helps the peer is on: fused AdamW, its key-value cache; where it has several entry points for a work,
each is a variant, and run.py takes the fastest. Run by the interpreter of `.venv-peer`; run.py does that.
"""

import argparse
import contextlib
import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import work
from transfusion_pytorch import Transfusion
from transfusion_pytorch import transfusion as peer_module


def build(size: work.Size) -> Transfusion:
    """The peer with its default blocks and `modality_default_shape` of the size's image."""
    torch.manual_seed(0)
    return Transfusion(
        num_text_tokens=work.VOCABULARY,
        dim_latent=work.CHANNELS,
        modality_default_shape=(size.side, size.side),
        transformer=dict(dim=size.width, depth=size.depth, dim_head=size.head_size, heads=size.heads),
    )


def autocast(dtype: str) -> contextlib.AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def train_step(model: Transfusion, size: work.Size, dtype: str, compiled: bool) -> Callable[[], None]:
    rows = work.training_rows(size)
    batch: list[list[Any]] = []
    for before, latents, after in zip(rows.before, rows.latents, rows.after, strict=True):
        row: list[Any] = [torch.from_numpy(before).long(), (0, torch.from_numpy(latents))]
        batch.append([*row, torch.from_numpy(after).long()] if len(after) else row)
    model.train()
    if compiled:
        model.transformer = torch.compile(model.transformer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=work.LEARNING_RATE, betas=work.BETAS, weight_decay=work.WEIGHT_DECAY, fused=True
    )

    def step() -> None:
        with autocast(dtype):
            loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def text_step(model: Transfusion, dtype: str) -> Callable[[], None]:
    """64 tokens by `generate_text_only` with its cache: the peer's text path that stops at no special token."""
    prompt = torch.from_numpy(work.prompt()).long()[None]

    def step() -> None:
        with autocast(dtype):
            tokens = model.generate_text_only(prompt, work.PROMPT_TOKENS + work.NEW_TOKENS, cache_kv=True)
        if tokens.shape[-1] != work.NEW_TOKENS:
            raise RuntimeError(f"the peer wrote {tokens.shape[-1]} tokens")

    return step


def image_step(model: Transfusion, dtype: str, guidance: float, many: bool) -> Callable[[], None]:
    """One image right after the prompt: `max_length` stops the decoder as soon as the image is there."""
    prompt = torch.from_numpy(work.prompt()).long()
    shape = (work.IMAGE_SIDE, work.IMAGE_SIDE)
    common = dict(
        max_length=work.IMAGE_SIDE**2 - 1,
        force_modality_at_start=(0, shape),
        modality_steps=work.EVALUATIONS // 2 + 1,  # grid points; the midpoint rule evaluates twice between two
        cfg_scale=guidance,
        return_unprocessed_modalities=True,
    )

    def step() -> None:
        with autocast(dtype):
            if many:
                model.sample_many([prompt], **common)
            else:
                model.sample_one(prompt, cache_kv=True, **common)

    return step


def plan(model: Transfusion, options: argparse.Namespace) -> work.Plan:
    size, dtype = work.SIZES[options.size], options.dtype
    result = {
        ("train", "eager"): partial(train_step, model, size, dtype, False),
        ("text", "generate_text_only"): partial(text_step, model, dtype),
    }
    for name, guidance in (("image", 1.0), ("guided", work.GUIDANCE)):
        result[name, "sample_many"] = partial(image_step, model, dtype, guidance, True)
        result[name, "sample_one"] = partial(image_step, model, dtype, guidance, False)
    # This variant runs only if it is asked for by name, because it may take minutes.
    if "compile" in options.variant.split(","):
        result["train", "compile"] = partial(train_step, model, size, dtype, True)
    return result


def main() -> None:
    options = work.arguments(__doc__).parse_args()
    work.pin(options.threads)
    torch.set_num_threads(options.threads)
    peer_module.tqdm = lambda values=None, **_: values if values is not None else contextlib.nullcontext(_Silent())
    peer_module.logger.disable("transfusion_pytorch")
    model = build(work.SIZES[options.size])
    count = sum(parameter.numel() for parameter in model.parameters())
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transfusion-pytorch")}
    work.report("peer", options, count, versions, plan(model, options))


class _Silent:
    """Stands for the peer's progress bar: drawing it is not part of the work."""

    def update(self, _: int) -> None: ...

    def set_description(self, _: str) -> None: ...


if __name__ == "__main__":
    main()
