"""LMFusion (arXiv 2412.15188) on captioned digits: a frozen language model learns to see and to draw.

What: `configs/digits.py` with an expert for each modality. The text expert and the text's embed and head come from a
text run and are frozen. The image expert starts as a copy of the text expert.
Command: python -m transfusion.train --config configs/lmfusion.py:text --workdir runs/lmfusion_text
  python -m transfusion.train --config configs/lmfusion.py --workdir runs/lmfusion
  The first command trains the language model on captions, and on where an image begins and ends.
  `--config.init.path=W` takes another text run of the same sizes, or one from `python -m transfusion.interop import`.
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `:text` is the text run. `configs/lmfusion.py:debug` trains 20 steps in seconds, without a text run: its text
expert is frozen at random.
"""

import dataclasses
import pathlib

from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.optim import LearningRateGroup
from transfusion.programs import load_experiment
from transfusion.sequence import Run, text

FORMS = ("", "debug", "text")
DENSE = pathlib.Path(__file__).with_name("digits.py")


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    dense = load_experiment(f"{DENSE}:debug" if form == "debug" else DENSE)
    streams = {name: dataclasses.replace(stream, expert=name) for name, stream in dense.streams.items()}
    mixture = dataclasses.replace(dense, streams=streams)
    if form == "text":
        return to_config_dict(text_alone(mixture))
    frozen = LearningRateGroup("trunk/(blocks|final_norm)/text|parts/text", 0.0)
    copies = tuple((f"trunk/{part}/image", f"trunk/{part}/text") for part in ("blocks", "final_norm"))
    experiment = dataclasses.replace(
        mixture,
        # Nothing learns from documents without images while the text is frozen: of a mixture of sources, leave the
        # text-only ones out of `data.sources`, which saves half of the training (section 3.3).
        optim=dataclasses.replace(mixture.optim, groups=(frozen,)),
        init=InitConfig() if form == "debug" else InitConfig("runs/lmfusion_text", copies),
    )
    return to_config_dict(experiment)


def text_alone(mixture: Experiment) -> Experiment:
    """The text run: the same data, of whose images text sees only BOI, EOI and the positions between them.

    Every document has its caption. BOI and EOI are like the marks that a language model's vocabulary holds in reserve.
    """
    unseen = dataclasses.replace(mixture.streams["image"], objective="none", visible_to=("image",))
    return dataclasses.replace(
        mixture,
        streams={"text": mixture.streams["text"], "image": unseen},
        layout={"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI, time_low=1.0),)},
        data=dataclasses.replace(mixture.data, drop_caption=0.0),
    )
