"""Trains diffusers' class-conditional DiT on the same digits, by DDPM's noise prediction or by flow matching.

  python measure.py --export digits.npz            # with the project's environment
  python independent.py --data digits.npz --objective noise --out noise.npz    # with torch and diffusers

Nothing of this project is imported: model, schedule and samplers are those of diffusers, and the loop below is plain
torch. It sees as many images as `configs/digits.py` does: 850 steps of 56. The drawn digits are in `--out`.
"""

import argparse

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
from torch.nn import functional as F

CLASSES, SIDE, WARMUP, DECAY = 10, 8, 100, 0.995


def model(width: int = 128, layers: int = 4, heads: int = 2) -> DiTTransformer2DModel:
    """A DiT of the width, depth and patches of `configs/digits.py`; its class is dropped for one image in ten."""
    return DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=1, out_channels=1, num_layers=layers,
        sample_size=SIDE, patch_size=2, num_embeds_ada_norm=CLASSES, norm_elementwise_affine=False,
    )  # fmt: skip


def rate(step: int, steps: int, highest: float) -> float:
    """A linear warm-up and half a cosine, as `transfusion.optim` has them."""
    if step < WARMUP:
        return highest * (step + 1) / WARMUP
    done = (step - WARMUP) / max(steps - WARMUP, 1)
    return 1e-5 + (highest - 1e-5) * 0.5 * (1 + np.cos(np.pi * done))


def noised(objective: str, noise: DDPMScheduler, images: torch.Tensor):
    """Noised images, their timesteps as the model reads them, and what it shall predict."""
    drawn = torch.randn_like(images)
    if objective == "noise":
        times = torch.randint(0, noise.config.num_train_timesteps, (len(images),))
        return noise.add_noise(images, drawn, times), times, drawn
    times = torch.rand(len(images))
    part = times[:, None, None, None]
    return (1 - part) * images + part * drawn, times * 1000, drawn - images


def train(net, objective: str, images: torch.Tensor, labels: torch.Tensor, steps: int, batch: int, highest: float):
    """Trains `net`; returns the average of its weights."""
    noise = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01, betas=(0.9, 0.95))
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    for step in range(steps):
        chosen = torch.randint(0, len(images), (batch,))
        x, times, wanted = noised(objective, noise, images[chosen])
        loss = F.mse_loss(net(x, timestep=times, class_labels=labels[chosen]).sample, wanted)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, highest)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            average[name].lerp_(value, 1 - decay) if value.is_floating_point() else average[name].copy_(value)
        if step % 50 == 49:
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}", flush=True)
    return average


def guided(net, x, time, labels, scale: float):
    """The prediction with classifier-free guidance; the class after the last is none."""
    both = net(
        torch.cat([x, x]),
        timestep=torch.full((2 * len(x),), time),
        class_labels=torch.cat([labels, labels * 0 + CLASSES]),
    ).sample
    with_class, without = both.chunk(2)
    return without + scale * (with_class - without)


@torch.no_grad()
def draw(net, objective: str, labels: torch.Tensor, steps: int, scale: float, solver: type) -> torch.Tensor:
    """Draws one image of each label."""
    net.eval()  # its label embedding drops no class now
    x = torch.randn(len(labels), 1, SIDE, SIDE)
    if objective == "noise":
        scheduler = solver(beta_schedule="squaredcos_cap_v2", clip_sample=False)
        scheduler.set_timesteps(steps)
        for time in scheduler.timesteps:
            x = scheduler.step(guided(net, x, int(time), labels, scale), time, x).prev_sample
        return x
    for i in range(steps):
        x = x - guided(net, x, 1000 * (1 - i / steps), labels, scale) / steps
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--objective", choices=("noise", "flow"), default="noise")
    parser.add_argument("--steps", type=int, default=850)
    parser.add_argument("--batch", type=int, default=56)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--number", type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = np.load(options.data)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float()
    net = model()
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters", flush=True)
    rates = images, torch.from_numpy(data["labels"]).long(), options.steps, options.batch, options.learning_rate
    net.load_state_dict(train(net, options.objective, *rates))
    asked = torch.arange(options.number) % CLASSES
    solvers = {"ddim50": (DDIMScheduler, 50)} if options.objective == "noise" else {
        "euler25": (None, 25)
    }  # fmt: skip
    drawn = {
        name: draw(net, options.objective, asked, steps, options.guidance, solver).permute(0, 2, 3, 1).numpy()
        for name, (solver, steps) in solvers.items()
    }
    np.savez_compressed(options.out, asked=asked.numpy(), **drawn)


if __name__ == "__main__":
    main()
