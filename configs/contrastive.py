"""Contrastive pretraining (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343) on captioned digits: a vision tower that
learns from captions, for systems that read images.

What: an image and its caption are encoded apart, and neither sees the other. The image passes a small Vision
Transformer and one more layer, which pools it, the caption a small causal language model. Of both the outputs are
averaged, mapped to one space and compared with all others of the batch. `transfusion.evaluate` measures zero-shot
accuracy: the class whose caption is nearest to a held-out image. This config has CLIP's softmax over the batch.
Original: CLIP pools by a class token and takes the text's last token; SigLIP pools images by attention. Both have
32,768 pairs of a batch, or more; here about 56 pairs share ten captions, so that most wrong pairs are right ones of
another image and the loss stays far from 0.
Command: python -m transfusion.train --config configs/contrastive.py --workdir runs/contrastive
  python -m transfusion.evaluate --workdir runs/contrastive
  `configs/llava.py` begins with its tower. So do `configs/janusflow.py` and `configs/bagel.py` by
  --config.init.path=runs/contrastive --config.init.fresh='trunk|parts/text|parts/semantic/embed/connector'
  and `configs/showo2.py`, whose tower has no final norm, by
  --config.init.path=runs/contrastive --config.init.fresh='trunk|parts/text'
  --config.init.copy='(("parts/image/embed/tower", "parts/semantic/embed/tower"),)'
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `configs/contrastive.py:siglip` has SigLIP's sigmoid for every pair. `:debug` and `:siglip_debug` train 20 steps
in seconds.
"""

import dataclasses
import pathlib

from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.model.config import Stage
from transfusion.programs import load_experiment
from transfusion.sequence import Run

FORMS = ("", "debug", "siglip", "siglip_debug")
READS = pathlib.Path(__file__).with_name("janusflow.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    reads = load_experiment(f"{READS}:understanding_debug" if form.endswith("debug") else f"{READS}:understanding")
    return to_config_dict(compared(reads, "siglip" if form.startswith("siglip") else "clip"))


def compared(reads: Experiment, objective: str) -> Experiment:
    """The experiment that compares what `reads` reads and writes."""
    images = dataclasses.replace(
        reads.streams["semantic"], head="pair", objective=objective, attention="block", visible_to=("semantic",)
    )
    words = dataclasses.replace(reads.streams["text"], head="none", objective="none", visible_to=("text",))
    # A stream looks its tower up in the trunk that it enters first.
    pool = Stage(dataclasses.replace(reads.model, layers=1, streams=("semantic",)), "none")
    return dataclasses.replace(
        reads,
        model=dataclasses.replace(reads.model, streams=("text",), stages={"pool": pool}, towers={}),
        streams={"text": words, "semantic": images},
        # No opener: nothing is drawn, and the caption knows nothing of its image.
        layout={"text": (Run("text"),), "image": (Run("semantic", position="advance_hold"),)},
        data=dataclasses.replace(reads.data, drop_caption=0.0),
    )
