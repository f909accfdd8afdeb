"""Writes the config for a folder of images, and says why it is as it is."""

import json
import pathlib
import textwrap

import numpy as np

from transfusion.new.fit import USUAL, Plan
from transfusion.new.folder import Found

_TEMPLATE = '''"""{title}

What: {count} images below {folder}, cut to {side}x{side} pixels; captions: {how}.
Written by `transfusion new`, which says why in the comments. Change what you like: `transfusion config check {file}`
tells whether it still fits.
Command: transfusion train --config {file} --workdir runs/{name}
Forms: `{file}:debug` trains 20 steps in seconds.
"""

import dataclasses

from transfusion import layouts
from transfusion.config import EvalConfig, Experiment, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text

FORMS = ("", "debug")
IMAGES = {folder!r}
# {side_why}
SIDE, CHANNELS, PATCH = {side}, {channels}, {patch}
TOKENS = (SIDE // PATCH) ** 2  # of an image: {tokens}
# {row_why}
IMAGES_OF_A_ROW, TEXT_OF_A_ROW = {images}, {text_budget}


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    source = SourceConfig(
{source}
    )
    experiment = Experiment(
        # {steps_why}
        steps={steps},
        batch_size={batch},
        model=TransformerConfig(width={width}, layers={layers}, heads={heads}, scan=False),
        streams={{
            "text": Stream(vocabulary=text.VOCABULARY, budget=TEXT_OF_A_ROW),
            "image": Stream(
                embed="linear", head="linear", objective="continuous", attention="block", time="added",
                channels=CHANNELS, patch=PATCH, grid=(SIDE, SIDE), budget=IMAGES_OF_A_ROW * TOKENS,
                weight=5.0, table="sincos",
            ),
        }},
        layout=layouts.transfusion(),
        data=DataConfig(
            sources={{"images": source}},
            caption_first=0.8,  # in four of five documents the caption comes first: the model mostly learns to draw
            drop_caption=0.1,  # without a caption the model learns what guidance needs
{data}        ),
        optim=OptimConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema={ema}),
        checkpoint=CheckpointConfig(every={every}, keep=2),
        eval={eval},
        sampling=SamplerConfig(steps=25, guidance={guidance}, temperature=0.0, max_tokens={max_tokens}),
    )
    return to_config_dict(debug_form(experiment) if form == "debug" else experiment)
'''
_SOURCE_FIELDS = ("kind", "path", "captions", "file_field", "caption_field")


def config_text(found: Found, plan: Plan, file: str, captions: str = "") -> str:
    """The config file.

    Args:
      found: what the folder holds.
      plan: what was chosen for it.
      file: the name of the file, for its docstring.
      captions: the captions file that was written for the folder; '' if it had one.
    """
    name = pathlib.Path(file).stem
    held = f"hold_out={plan.hold_out:g},  # {plan.held_out} images, chosen by a hash of their names"
    evaluated = (
        'EvalConfig(\n            every=500,\n            sources={"images": dataclasses.replace(source, '
        'part="held_out")},\n            samples=100,\n            captions=100,\n            prompts="held_out",\n'
        "        )"
    )
    data = [f"open_rows={plan.open_rows},  # rows that are filled side by side: more of them fill better"] * (
        plan.open_rows != 8
    )
    data += ["truncate=True,  # a few captions are longer than a row"] * plan.truncate
    if found.unreadable and not captions:
        data.append("max_bad_share=0.2,  # some of the images that the table names cannot be read")
    return _TEMPLATE.format(
        **vars(plan), title=f"Transfusion (arXiv 2408.11039) on the images of {pathlib.Path(found.folder).name}.",
        count=len(found.captions), folder=found.folder, how=found.how, file=file, name=name, tokens=plan.tokens,
        side_why=_comment(why_side(found, plan)), row_why=_comment(why_row(plan)),
        steps_why=_comment(why_steps(found, plan), 8),
        source=textwrap.indent(_source(found, captions) + (f"\n{held}" if plan.hold_out else ""), " " * 8),
        data=textwrap.indent("".join(f"{line}\n" for line in data), " " * 12),
        eval=evaluated if plan.hold_out else "EvalConfig(every=0)",
        ema=0.995 if plan.steps < 3000 else 0.999, every=max(100, min(1000, plan.steps // 4)),
        guidance=2.0 if captioned(found) else 1.0, max_tokens=max(16, 8 * ((plan.longest + 15) // 8)),
    )  # fmt: skip


def _source(found: Found, captions: str) -> str:
    fields = {name: getattr(found.source, name) for name in _SOURCE_FIELDS}
    fields |= {"captions": captions} if captions else {}
    lines = [f"{name}={value!r}," for name, value in fields.items() if name not in ("path",)]
    lines.insert(1, "path=IMAGES,")
    return "\n".join([*lines, "resolution=SIDE,", "channels=CHANNELS,"])


def captioned(found: Found) -> bool:
    """Whether any image has a caption."""
    return any(caption for _, caption in found.captions)


def captions_text(found: Found) -> str:
    """The captions as a .jsonl file, for a folder whose captions no source could read."""
    field = found.source.file_field, found.source.caption_field or "caption"
    return "".join(json.dumps(dict(zip(field, row, strict=True))) + "\n" for row in found.captions)


def _comment(said: str, indent: int = 0) -> str:
    return f"\n{' ' * indent}# ".join(textwrap.wrap(said, 116 - indent))


# --- reasons ----------------------------------------------------------------------------------------------------------


def why_side(found: Found, plan: Plan) -> str:
    """Why images have this size."""
    low, high = found.sizes.min(0), found.sizes.max(0)
    have = f"{low[1]}x{low[0]}" if (low == high).all() else f"{low[1]}x{low[0]} to {high[1]}x{high[0]}"
    grey = "all are grey" if plan.channels == 1 else "some have colours"
    cut = 1 - float(np.mean(found.sizes.min(1) / found.sizes.max(1)))
    lost = f" The centre square is kept, which cuts off {cut:.0%} on average." if cut > 0.02 else ""
    more = " Larger ones cost more time: --resolution=64." if plan.side == USUAL and low.min() > USUAL else ""
    return (
        f"The images have {have} pixels (width x height), and {grey}.{lost} {plan.side}x{plan.side} in patches of "
        f"{plan.patch}x{plan.patch} are {plan.tokens} tokens an image.{more}"
    )


def why_row(plan: Plan) -> str:
    """Why a row holds what it holds."""
    fitting = "which are cut to what a row holds" if plan.truncate else "for which a row has room"
    return (
        f"Captions take {plan.mean:.0f} tokens on average and {plan.longest} at most, {fitting}. A row of "
        f"{plan.images} images and {plan.text_budget} tokens of text is filled to {plan.filled['all']:.0%} (images "
        f"{plan.filled['image']:.0%}, text {plan.filled['text']:.0%})."
    )


def why_steps(found: Found, plan: Plan) -> str:
    """Why there are so many steps."""
    images = plan.batch * plan.images
    passes = plan.steps * images / len(found.captions)
    return f"A step sees about {images} images, so this is about {passes:.0f} passes over all {len(found.captions)}."
