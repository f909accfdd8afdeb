"""Every system on scenes: the same small changes of one base, on data that no small model has learned by heart.

What: the configs of systems, with `configs/scenes_dense.py` in the place of `configs/digits.py` and
`configs/scenes_vq.py` in that of `configs/vq_digits.py`. Forms are the names of the systems; with `_debug` behind it,
as in `configs/scenes_systems.py:mot_debug`, a system trains 20 steps in seconds, and with `_gpu` it has a size for a
GPU, which is not run yet.
Data: python -m transfusion.train --config configs/scenes_vq.py --workdir runs/scenes_vq
  This trains the codec of the systems that draw codes; `configs/scenes_vq.py:multiscale` is that of `:var`.
Command: python -m transfusion.train --config configs/scenes_systems.py:mot --workdir runs/scenes_mot
  python -m transfusion.sweep experiments/scenes_table/sweep.py --workdir runs/scenes_table
Hardware: a CPU core. Time and results: experiments/scenes_table.
"""

import dataclasses
import pathlib

from transfusion.config import Experiment, check_form, to_config_dict
from transfusion.programs import in_place_of, load_experiment

CONFIGS = pathlib.Path(__file__).parent
FORMS = (
    "transfusion", "unet", "ddpm", "mot", "mot_post_norm", "experts", "experts_mot", "dit_block", "mmdit_block",
    "bagel", "mogao", "showo2", "janusflow", "tuna2", "nextstep", "omnigen",
    "showo", "dimoo", "var", "janus", "chameleon", "chameleon_mot", "emu3", "unitoken",
    "fuyu", "janus_understanding", "llada", "llamagen",
)  # fmt: skip
# The configs of the systems that are not called as their file is.
FILES = {
    "transfusion": "digits.py", "unet": "digits.py:unet", "ddpm": "digits.py:ddpm", "mot_post_norm": "mot.py:post",
    "experts_mot": "experts.py:mot", "dit_block": "dit.py", "mmdit_block": "dit.py:mmdit", "dimoo": "llada.py:dimoo",
    "chameleon_mot": "chameleon.py:mot", "janus_understanding": "janusflow.py:understanding",
}  # fmt: skip
# What stands in the place of which file, for the other sizes.
BASES = {
    "debug": {"digits.py": "scenes_dense.py:debug", "vq_digits.py": "scenes_vq.py:debug"},
    "gpu": {"digits.py": "scenes_dense.py:gpu", "vq_digits.py": "scenes_vq.py"},
}
FLOWS = ("continuous", "token_flow")  # objectives with noise
CODECS = {"runs/vq_digits": "runs/scenes_vq", "runs/vq_digits_multiscale": "runs/scenes_vq_multiscale"}


def get_config(form: str = "transfusion"):
    """The experiment; `form` is one of `FORMS`, perhaps with '_debug' or '_gpu' behind it, or 'debug', the first's."""
    form = "transfusion_debug" if form == "debug" else form
    size = next((size for size in BASES if form.endswith(f"_{size}")), "")
    name = form.removesuffix(f"_{size}")
    check_form(__file__, name, FORMS)
    bases = BASES.get(size, {"digits.py": "scenes_dense.py", "vq_digits.py": "scenes_vq.py"})
    with in_place_of({CONFIGS / old: CONFIGS / new for old, new in bases.items()}):
        system = load_experiment(CONFIGS / FILES.get(name, f"{name}.py"))
    return to_config_dict(on_scenes(system))


def on_scenes(system: Experiment) -> Experiment:
    """The experiment with the codec of scenes, and without what is good for digits alone."""
    sources, held_out = (
        {name: source for name, source in part.items() if name != "facts" or system.data.caption_first < 1}
        for part in (system.data.sources, system.eval.sources)
    )
    base = load_experiment(CONFIGS / "scenes_dense.py").objectives.continuous["image"]
    continuous = {name: base for name, stream in system.streams.items() if stream.objective in FLOWS}
    return dataclasses.replace(
        system,
        # What is drawn is called otherwise in some systems.
        objectives=dataclasses.replace(system.objectives, continuous=continuous | system.objectives.continuous),
        # A system that only draws learns nothing from questions. What moves by pixels is no scene.
        data=dataclasses.replace(system.data, sources=sources, shift=0),
        eval=dataclasses.replace(system.eval, sources=held_out),
        codec=dataclasses.replace(system.codec, path=CODECS.get(system.codec.path, system.codec.path)),
        init=dataclasses.replace(system.init, path=CODECS.get(system.init.path, system.init.path)),
        # What a caption of no picture in particular begins with.
        sampling=dataclasses.replace(system.sampling, negative="a " if system.sampling.negative else ""),
    )
