"""Resamplers (BLIP-2, arXiv 2301.12597; Flamingo, arXiv 2204.14198) and a choice of tokens on captioned digits: an
image that is read takes few tokens.

What: `configs/llava.py`, where a digit is 4 tokens and not 16. Four learned queries look at the tokens of a vision
tower in two layers, and what they have seen stands before the caption, as a word does (BLIP-2). The tower is that of a
contrastive run and the language model that of a text run; both stay as they are.
Original: BLIP-2's Q-Former begins as BERT and is trained on captions first, with three objectives; Flamingo has 64
queries, and a gated feed-forward layer beside each gated cross-attention.
Command: python -m transfusion.train --config configs/lmfusion.py:text --workdir runs/lmfusion_text
  python -m transfusion.train --config configs/contrastive.py --workdir runs/contrastive
  python -m transfusion.train --config configs/resampler.py --workdir runs/resampler
  The first two commands train the language model and the tower; see `configs/llava.py` for others.
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/resampler.py:flamingo` shows the queries to the frozen language model by a cross-attention in every
layer, whose gate is closed at first, so that it begins as the language model that it was.
`configs/resampler.py:select` chooses 4 of the tower's 16 tokens and 16 patches of pixels, by a score that it learns
(arXiv 2505.02567, section IV-B1). All of it begins at random and is trained.
`:debug`, `:flamingo_debug` and `:select_debug` train 20 steps in seconds, without other runs.
"""

import dataclasses
import pathlib

from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.optim import LearningRateGroup
from transfusion.programs import load_experiment

FORMS = ("", "debug", "flamingo", "flamingo_debug", "select", "select_debug")
READS = pathlib.Path(__file__).with_name("janusflow.py")
TOWER = "parts/semantic/embed/tower"


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    debug = form.endswith("debug")
    reads = load_experiment(f"{READS}:understanding_debug" if debug else f"{READS}:understanding")
    make = {"flamingo": flamingo, "select": select}.get(form.removesuffix("debug").removesuffix("_"), resampler)
    experiment = make(reads)
    return to_config_dict(dataclasses.replace(experiment, init=InitConfig()) if debug else experiment)


def of_pieces(reads: Experiment, patch: int, **changes) -> Experiment:
    """The experiment whose images take a token for each piece of `patch` x `patch` pixels."""
    seen = dataclasses.replace(reads.streams["semantic"], patch=patch, attention="block", **changes)
    seen = dataclasses.replace(seen, budget=reads.streams["semantic"].max_items * seen.tokens_per_item)
    return dataclasses.replace(reads, streams=reads.streams | {"semantic": seen})


def resampler(reads: Experiment, frozen: str = f"{TOWER}|parts/text|trunk") -> Experiment:
    """BLIP-2: only the queries and their layers learn."""
    experiment = of_pieces(reads, 4, embed="resampler")
    # The name of the language model's expert in its run.
    streams = {name: dataclasses.replace(stream, expert="text") for name, stream in experiment.streams.items()}
    tower = InitConfig("runs/contrastive", fresh="trunk|parts/text")
    return dataclasses.replace(
        experiment,
        streams=streams,
        optim=dataclasses.replace(reads.optim, groups=(LearningRateGroup(frozen, 0.0),)),
        init=InitConfig("runs/lmfusion_text", others={"tower": tower}),
    )


def flamingo(reads: Experiment) -> Experiment:
    """Flamingo: the queries are a context of the language model, and no tokens of it."""
    experiment = resampler(reads, f"{TOWER}|parts/text|trunk/(blocks|final_norm)")
    model = dataclasses.replace(experiment.model, cross=("semantic",), cross_gate="tanh")
    return dataclasses.replace(experiment, model=model)


def select(reads: Experiment) -> Experiment:
    """The best 4 of 16 semantic and 16 pixel tokens."""
    return of_pieces(reads, 4, embed="select")
