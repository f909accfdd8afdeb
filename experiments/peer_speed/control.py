"""The control: our plain architecture, written by hand in torch with its fused attention and optimizer.

It separates the framework from the model: the peer's blocks cost more than ours, so a ratio to the peer alone would say
little about JAX. Tokens are stored as in our rows, [text | image], so that logits and velocity are slices; query, key
and value share one matmul, as do gate and up. `check_control.py` holds it equal to our model with copied weights.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import work
from torch import Tensor, nn

EPSILON = 1e-5
TIME_FEATURES = 256
BEGIN, BEGIN_IMAGE, END_IMAGE, END, NULL = 257, 259, 260, 258, 256


@dataclasses.dataclass(frozen=True)
class Batch:
    """B rows of T text tokens and N image tokens; L = T + N, text first.

    ids, targets [B, T] int64; text_weight [B, T]; noised, velocity [B, N, C]; image_weight [B, N]; time [B, M] of the
    row's M images; item [B, N] int64, which of them a token belongs to; document, order, span, position [B, L] int64.
    """

    ids: Tensor
    targets: Tensor
    text_weight: Tensor
    noised: Tensor
    velocity: Tensor
    image_weight: Tensor
    time: Tensor
    item: Tensor
    document: Tensor
    order: Tensor
    span: Tensor
    position: Tensor


def load_batch(arrays: dict[str, np.ndarray]) -> Batch:
    """Batch from the arrays `batch/<field>` of a dump."""
    fields = {field.name: torch.from_numpy(arrays[f"batch/{field.name}"]) for field in dataclasses.fields(Batch)}
    return Batch(**{name: value if value.is_floating_point() else value.long() for name, value in fields.items()})


def attention_mask(batch: Batch, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: causal in reading order, or the same image; documents apart."""
    document, order, span = batch.document, batch.order, batch.span
    same_span = (span[:, :, None] == span[:, None, :]) & (span[:, :, None] != 0)
    seen = same_span | (order[:, None, :] <= order[:, :, None])
    seen &= (document[:, :, None] == document[:, None, :]) & (document[:, :, None] != 0)
    # A padded query sees itself: an empty softmax would be NaN.
    seen |= torch.eye(order.shape[1], dtype=torch.bool)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf)[:, None]


def rotary(position: Tensor, head_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, L, K] of rotate-half RoPE."""
    frequency = 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    angle = position[:, None, :, None].float() * frequency
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.scale, EPSILON)


class Cache:
    """Keys and values [B, H, capacity, K] of one layer; `commit` says whether new ones stay."""

    def __init__(self, batch: int, heads: int, capacity: int, head_size: int, dtype: torch.dtype) -> None:
        self.keys = torch.zeros(batch, heads, capacity, head_size, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def extend(self, keys: Tensor, values: Tensor, commit: bool) -> tuple[Tensor, Tensor]:
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        if commit:
            self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Block(nn.Module):
    def __init__(self, size: work.Size) -> None:
        super().__init__()
        inner = size.heads * size.head_size
        self.heads, self.head_size = size.heads, size.head_size
        self.attention_norm, self.ffn_norm = Norm(size.width), Norm(size.width)
        self.qkv = nn.Linear(size.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, size.width, bias=False)
        self.gate_up = nn.Linear(size.width, 2 * size.ffn, bias=False)
        self.down = nn.Linear(size.ffn, size.width, bias=False)

    def forward(
        self,
        x: Tensor,
        cosine: Tensor,
        sine: Tensor,
        mask: Tensor | None,
        cache: Cache | None = None,
        commit: bool = False,
        causal: bool = False,
    ) -> Tensor:
        B, L, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, L, 3, self.heads, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        if cache is not None:
            k, v = cache.extend(k, v, commit)
        mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask, is_causal=causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, L, -1))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Control(nn.Module):
    """Text by next-token prediction, images by flow matching (t = 0 noise, velocity = data - noise), one trunk."""

    def __init__(self, size: work.Size, vocabulary: int = work.VOCABULARY) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(vocabulary, size.width)
        self.patch_in = nn.Linear(work.CHANNELS, size.width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.norm = Norm(size.width)
        self.logits = nn.Linear(size.width, vocabulary, bias=False)
        self.patch_out = nn.Linear(size.width, work.CHANNELS)

    def condition(self, time: Tensor) -> Tensor:
        """Time embedding [..., D] of noise levels [...]."""
        frequency = torch.exp(-math.log(10000.0) * torch.arange(TIME_FEATURES // 2) / (TIME_FEATURES // 2))
        angle = 1000.0 * time[..., None] * frequency
        return self.time(torch.cat((angle.cos(), angle.sin()), -1))

    def trunk(self, x: Tensor, position: Tensor, mask: Tensor | None, dtype: torch.dtype, **options: object) -> Tensor:
        cosine, sine = rotary(position, self.size.head_size, dtype)
        caches = options.pop("caches", None)
        for index, block in enumerate(self.blocks):
            x = block(x, cosine, sine, mask, caches[index] if caches else None, **options)
        return self.norm(x)

    def loss(self, batch: Batch, dtype: torch.dtype) -> Tensor:
        """Weighted mean cross entropy + 5 x mean squared velocity error."""
        text = batch.ids.shape[1]
        condition = self.condition(batch.time)
        picked = torch.gather(condition, 1, batch.item[..., None].expand(-1, -1, condition.shape[-1]))
        x = torch.cat((self.embed(batch.ids), self.patch_in(batch.noised) + picked), 1)
        x = self.trunk(x, batch.position, attention_mask(batch, dtype), dtype)
        logits = self.logits(x[:, :text]).float()
        cross = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        weight = batch.text_weight.flatten()
        square = (self.patch_out(x[:, text:]).float() - batch.velocity).square().mean(-1)
        image = (square * batch.image_weight).sum() / batch.image_weight.sum()
        return (cross * weight).sum() / weight.sum() + work.IMAGE_LOSS_SCALE * image


def random_batch(size: work.Size) -> Batch:
    """One row per example: BOS before BOI image EOI after EOS, stored as [text | image]."""
    rows = work.training_rows(size)
    B, N, before, after = size.batch, size.latents, size.text_before, size.text_after
    mark = lambda token: np.full((B, 1), token, np.int32)  # noqa: E731
    ids = np.concatenate((mark(BEGIN), rows.before, mark(BEGIN_IMAGE), mark(END_IMAGE), rows.after, mark(END)), 1)
    T = ids.shape[1]
    rank = np.concatenate((np.arange(before + 2), np.arange(after + 2) + before + 2 + N, np.arange(N) + before + 2))
    order = np.broadcast_to(rank, (B, T + N))
    noise = np.random.default_rng(2).standard_normal((B, N, work.CHANNELS)).astype(np.float32)
    data = rows.latents.reshape(B, N, work.CHANNELS)
    time = np.random.default_rng(3).random((B, 1)).astype(np.float32)
    arrays = {
        "ids": ids,
        "targets": np.roll(ids, -1, 1),
        "text_weight": np.ones((B, T), np.float32),
        "noised": (1 - time[..., None]) * noise + time[..., None] * data,
        "velocity": data - noise,
        "image_weight": np.ones((B, N), np.float32),
        "time": time,
        "item": np.zeros((B, N), np.int32),
        "document": np.ones((B, T + N), np.int32),
        "order": np.ascontiguousarray(order),
        "span": np.concatenate((np.zeros((B, T), np.int32), np.ones((B, N), np.int32)), 1),
        "position": np.ascontiguousarray(order),
    }
    return load_batch({f"batch/{name}": value for name, value in arrays.items()})


def autocast(dtype: torch.dtype) -> contextlib.AbstractContextManager:
    return torch.autocast("cpu", dtype) if dtype == torch.bfloat16 else contextlib.nullcontext()


def train_step(model: Control, dtype: torch.dtype) -> Callable[[], None]:
    batch = random_batch(model.size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=work.LEARNING_RATE, betas=work.BETAS, weight_decay=work.WEIGHT_DECAY, fused=True
    )

    def step() -> None:
        with autocast(dtype):
            loss = model.loss(batch, dtype)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def prefix(model: Control, ids: Tensor, room: int, dtype: torch.dtype) -> tuple[Tensor, list[Cache]]:
    """Read ids [B, n] into fresh caches with `room` free places: (last hidden state [B, D], caches)."""
    B, n = ids.shape
    size = model.size
    caches = [Cache(B, size.heads, n + room, size.head_size, dtype) for _ in model.blocks]
    position = torch.arange(n).expand(B, n)
    x = model.trunk(model.embed(ids), position, None, dtype, caches=caches, commit=True, causal=True)
    return x[:, -1], caches


def text_step(model: Control, dtype: torch.dtype) -> Callable[[], None]:
    prompt = torch.from_numpy(np.concatenate(([BEGIN], work.prompt()))).long()[None]

    @torch.inference_mode()
    def step() -> None:
        with autocast(dtype):
            hidden, caches = prefix(model, prompt, work.NEW_TOKENS, dtype)
            for _ in range(work.NEW_TOKENS):
                logits = model.logits(hidden).float()
                token = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1, keepdim=True)
                position = torch.full_like(token, caches[0].length)
                x = model.trunk(model.embed(token), position, None, dtype, caches=caches, commit=True)
                hidden = x[:, -1]

    return step


def image_step(model: Control, dtype: torch.dtype, guidance: float) -> Callable[[], None]:
    """Euler steps against the cached prompt; guidance adds a second row, whose prompt is all padding ids."""
    prompt = np.concatenate(([BEGIN], work.prompt(), [BEGIN_IMAGE]))
    N = work.IMAGE_SIDE**2
    rows = [prompt, np.full_like(prompt, NULL)] if guidance != 1.0 else [prompt]
    ids = torch.from_numpy(np.stack(rows)).long()
    position = torch.arange(len(prompt), len(prompt) + N).expand(len(rows), N)

    @torch.inference_mode()
    def step() -> None:
        with autocast(dtype):
            _, caches = prefix(model, ids, N, dtype)

            def velocity(x: Tensor, time: float) -> Tensor:
                condition = model.condition(torch.full((1, 1), time))
                tokens = (model.patch_in(x) + condition).expand(len(rows), -1, -1)
                hidden = model.trunk(tokens, position, None, dtype, caches=caches, commit=False)
                out = model.patch_out(hidden).float()
                return out[1:] + guidance * (out[:1] - out[1:]) if guidance != 1.0 else out

            x = torch.randn(1, N, work.CHANNELS)
            for index in range(work.EVALUATIONS):
                x = x + velocity(x, index / work.EVALUATIONS) / work.EVALUATIONS

    return step


def plan(model: Control, options: argparse.Namespace) -> work.Plan:
    dtype = getattr(torch, options.dtype)
    return {
        ("train", "eager"): partial(train_step, model, dtype),
        ("text", "eager"): partial(text_step, model, dtype),
        ("image", "eager"): partial(image_step, model, dtype, 1.0),
        ("guided", "eager"): partial(image_step, model, dtype, work.GUIDANCE),
    }


def main() -> None:
    options = work.arguments(__doc__).parse_args()
    work.pin(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Control(work.SIZES[options.size])
    count = sum(parameter.numel() for parameter in model.parameters())
    versions = {"torch": importlib.metadata.version("torch")}
    work.report("control", options, count, versions, plan(model, options))


if __name__ == "__main__":
    main()
