"""One model of scenes that draws and reads: captions, questions, edits, stories, subjects and condition maps.

What: pictures of 18x18 pixels with up to four coloured shapes, made as they are read, without end
(`transfusion.data.scenes`). Each picture is noised latents that nothing else sees, and clean ones that what follows
reads (BAGEL's layout without a tower, arXiv 2505.14683), so that records of any form train the same model: only the
sources differ.
Command: python -m transfusion.train --config configs/scenes.py --workdir runs/scenes
  python experiments/scenes/run.py --workdir runs/scenes
Hardware: 2 CPU cores. Time and results: experiments/scenes.
Forms: without a form, captions both ways. `configs/scenes.py:questions` answers questions about pictures, `:edits`
changes a picture as it is told, `:stories` writes and draws four panels, `:subjects` puts the things of two pictures
into a third, `:maps` draws from edges, masks and layouts, and `:any` is one model of all of these.
In `:codes` a picture is nine codes in the text's vocabulary (Chameleon, arXiv 2405.09818), those of
`configs/scenes_vq.py`: one model of stories, edits and subjects, of large things before white. In `:planned` the same
model writes a list of all that a picture will show before it draws it (a plan in words, as GoT, arXiv 2503.10639).
`:debug` and `:any_debug` train 20 steps in seconds.
"""

import dataclasses
import pathlib

from transfusion import layouts
from transfusion.codecs import CodecConfig
from transfusion.config import EvalConfig, Experiment, check_form, debug_form, to_config_dict
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.objectives.paths import ContinuousConfig
from transfusion.optim import OptimConfig
from transfusion.running.checkpoint import CheckpointConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sequence import Stream, text
from transfusion.sequence.text import TokenizerConfig

SIDE, PATCH = 18, 6  # so that a thing lies in one patch
# A patch has nearly as many numbers as the trunk is wide, see `configs/scenes_dense.py`.
CONTINUOUS = ContinuousConfig(prediction="data", shift=2.0)
WORDS = pathlib.Path(__file__).with_name("scenes_words.json")
TASKS = {
    "": ("captions", "listed"),
    "questions": ("questions", "listed"),  # all that is to be seen, in words, teaches to look
    "edits": ("edits",),
    "stories": ("stories",),
    "subjects": ("subjects",),
    "maps": ("edges", "masks", "layouts"),
}
TASKS["any"] = tuple(task for tasks in TASKS.values() for task in tasks)
TASKS["codes"] = ("plain_stories", "plain_edits", "plain_subjects")
TASKS["planned"] = ("planned_stories", "planned_edits", "planned_subjects")
# Tokens of a row: of text, noised and clean; a picture is nine. They are what 8 captions, 10 questions and lists,
# 8 edits, 2 stories, 6 pairs of subjects and 8 maps need.
BUDGETS = {
    "": (130, 72, 45), "questions": (220, 9, 90), "edits": (105, 72, 72), "stories": (112, 72, 72),
    "subjects": (130, 54, 108), "maps": (130, 72, 72), "any": (140, 72, 45),
    "codes": (112, 72, 72), "planned": (190, 72, 72),
}  # fmt: skip
WEIGHTS = {
    "questions": {"questions": 4.0}, "codes": {"plain_stories": 2.0},
    "planned": {"planned_stories": 2.0, "planned_edits": 2.0},
}  # fmt: skip
CODES = 512
FORMS = ("", "debug", "questions", "edits", "stories", "subjects", "maps", "any", "any_debug", "codes", "planned")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    name = form.removesuffix("debug").removesuffix("_")
    words, drawn, read = BUDGETS[name]
    weights = WEIGHTS.get(name, {})
    train = {
        task: SourceConfig(kind="scenes", name=task, resolution=SIDE, weight=weights.get(task, 1.0))
        for task in TASKS[name]
    }
    held_out = {task: dataclasses.replace(source, split="test") for task, source in train.items()}
    noised = Stream(
        head="linear", objective="continuous", attention="block", time="added",
        channels=3, patch=PATCH, grid=(SIDE, SIDE), budget=drawn, weight=100.0, table="sincos",
        # Who only answers has no noise.
        **({"embed": "linear"} if name == "questions" else {"embed": "narrow", "coder_width": 16}),
    )  # fmt: skip
    experiment = Experiment(
        steps=4000,
        batch_size=4,
        log_every=50,
        model=TransformerConfig(width=128, layers=6, heads=4, rope_axes=3, rope_interleaved=True, scan=False),
        streams={
            "text": Stream(vocabulary=text.VOCABULARY, budget=words, weight=2.0),
            "noised": noised,
            "clean": dataclasses.replace(noised, parts="noised", objective="none", budget=read),
        },
        layout=layouts.world(),
        tokenizer=TokenizerConfig("huggingface", str(WORDS)),
        objectives=ObjectivesConfig(continuous={"noised": CONTINUOUS}),
        # Who only answers only reads.
        data=DataConfig(sources=train, caption_first=0.0 if name == "questions" else 0.6, cache=False),
        optim=OptimConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup=100, weight_decay=0.01, ema=0.995),
        checkpoint=CheckpointConfig(every=500, keep=2),
        eval=EvalConfig(every=500, sources=held_out, prompts="held_out"),
        sampling=SamplerConfig(
            steps=25, shift=CONTINUOUS.shift, guidance=2.0, temperature=0.0, max_tokens=160, max_images=4
        ),
    )
    if name in ("codes", "planned"):
        experiment = spelled(experiment)
    if form.endswith("debug"):
        experiment = debug_form(experiment)
    return to_config_dict(experiment)


def spelled(experiment: Experiment) -> Experiment:
    """The experiment whose pictures are codes among the words, drawn and read as these are."""
    sources, held_out = (
        {name: dataclasses.replace(source, resolution=8 * SIDE // PATCH) for name, source in part.items()}
        for part in (experiment.data.sources, experiment.eval.sources)
    )
    words, drawn = experiment.streams["text"], experiment.streams["noised"].budget
    words = dataclasses.replace(words, vocabulary=text.VOCABULARY + CODES, budget=words.budget + drawn, weight=1.0)
    return dataclasses.replace(
        experiment,
        steps=12_000,
        model=dataclasses.replace(experiment.model, rope_axes=1, rope_interleaved=False, qk_norm="layer"),
        streams={"text": words},
        layout=layouts.chameleon(CODES, (SIDE // PATCH, SIDE // PATCH)),
        objectives=ObjectivesConfig(),
        codec=CodecConfig("autoencoder", "runs/scenes_vq"),
        data=dataclasses.replace(experiment.data, sources=sources),
        eval=dataclasses.replace(experiment.eval, sources=held_out),
        # Words say all that is to be drawn.
        sampling=dataclasses.replace(experiment.sampling, guidance=1.0, code_temperature=0.0),
    )
