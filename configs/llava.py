"""LLaVA (arXiv 2304.08485, 2310.03744) on captioned digits: a finished language model learns to read images.

What: the tower of a contrastive run sees the image, and a connector of two layers (the projector) turns its tokens into
tokens of a language model that has never seen an image. The first stage trains the projector alone, the second the
projector and the language model. The tower stays as it was. Only captions have a loss, and all stand behind an image.
Original: the tower is CLIP's, of which the last layer but one is read, and the language model Vicuna. The first stage
has captions, the second conversations; here both have the same captions.
Command: python -m transfusion.train --config configs/lmfusion.py:text --workdir runs/lmfusion_text
  python -m transfusion.train --config configs/contrastive.py --workdir runs/contrastive
  python -m transfusion.train --config configs/llava.py:projector --workdir runs/llava_projector
  python -m transfusion.train --config configs/llava.py --workdir runs/llava
  The first two commands train the language model and the tower. For `:projector`, `--config.init.path=W` takes another
  language model and `--config.init.others.tower.path=W` another tower; for the second stage, `--config.init.path=W`
  takes another first one. `--config.optim.groups='()'` trains the tower, too (LLaVA-NeXT).
Hardware: 2 CPU cores. Time and results: experiments/family_on_digits.
Forms: `:projector` is the first stage. `configs/llava.py:debug` and `:projector_debug` train 20 steps in seconds,
without other runs: what they freeze is random.
"""

import dataclasses
import pathlib

from transfusion.config import check_form, to_config_dict
from transfusion.initial import InitConfig
from transfusion.optim import LearningRateGroup
from transfusion.programs import load_experiment

FORMS = ("", "debug", "projector", "projector_debug")
READS = pathlib.Path(__file__).with_name("janusflow.py")
TOWER = "parts/semantic/embed/tower"


def get_config(form: str = ""):
    """The experiment; `form` is one of `FORMS`."""
    check_form(__file__, form, FORMS)
    first, debug = form.startswith("projector"), form.endswith("debug")
    reads = load_experiment(f"{READS}:understanding_debug" if debug else f"{READS}:understanding")
    frozen = f"trunk|parts/text|{TOWER}" if first else TOWER
    tower = InitConfig("runs/contrastive", fresh="parts/semantic/embed/connector")
    init = InitConfig("runs/lmfusion_text", others={"tower": tower}) if first else InitConfig("runs/llava_projector")
    experiment = dataclasses.replace(
        reads,
        # The name of the language model's expert in its run.
        streams={name: dataclasses.replace(stream, expert="text") for name, stream in reads.streams.items()},
        optim=dataclasses.replace(
            reads.optim, groups=(LearningRateGroup(frozen, 0.0),), learning_rate=2e-3 if first else 1e-3
        ),
        init=InitConfig() if debug else init,
    )
    return to_config_dict(experiment)
