"""Every system on scenes at equal FLOPs: the same base, the same data, one budget, three seeds.

  python experiments/scenes_table/count.py                      # when a config has changed: the FLOPs of a step
  python -m transfusion.sweep experiments/scenes_table/sweep.py --workdir runs/scenes_table
  python experiments/scenes_table/table.py --workdir runs/scenes_table

The budget is counted by the project's own counter (`Learner.flops`: forward and backward passes of this very data) and
gives each system its steps: counts.json has the FLOPs of a step. The two codecs of the systems that draw codes come
first; every seed and system uses the same ones, and their FLOPs are not counted. `SIZE=gpu` before each command takes
the sizes for a GPU, which are not run yet.
"""

import json
import os
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
RUNS = "runs/scenes_table"
# The budget of FLOPs by size, and what stands behind the name of a system.
SIZES = {"cpu": (1e13, ""), "gpu": (1e17, "_gpu")}
SIZE = os.environ.get("SIZE", "cpu")
BUDGET, SUFFIX = SIZES[SIZE]
SEEDS = (0, 1, 2)
# In an order in which the first ones already make a table: after them come systems that only draw or only read.
SYSTEMS = (
    "transfusion", "mot", "bagel", "showo2", "janusflow", "showo", "chameleon", "janus",
    "dit_block", "mmdit_block", "unet", "ddpm", "mot_post_norm", "experts", "experts_mot", "mogao", "tuna2", "nextstep",
    "omnigen", "dimoo", "var", "chameleon_mot", "emu3", "unitoken",
    "fuyu", "janus_understanding", "llada", "llamagen",
)  # fmt: skip
CODECS = {"vq": "scenes_vq.py", "vq_multiscale": "scenes_vq.py:multiscale"}
# The paths that name a codec, by system.
_CODES = {"codec.path": f"{RUNS}/vq"}
CODES = dict.fromkeys(("chameleon", "janus", "chameleon_mot", "emu3", "unitoken", "llamagen"), _CODES) | {
    "showo": _CODES | {"init.path": f"{RUNS}/vq"},
    "dimoo": _CODES | {"init.path": f"{RUNS}/vq"},
    "var": {"codec.path": f"{RUNS}/vq_multiscale", "init.path": f"{RUNS}/vq_multiscale"},
}


def steps_of(name: str) -> int:
    """How many steps of a system the budget pays."""
    return round(BUDGET / json.loads((HERE / "counts.json").read_text())[SIZE][name])


def get_sweep():
    """(name, config file, fields that differ): the codecs, and then seed by seed all systems."""
    members = [(name, str(CONFIGS / file), {}) for name, file in CODECS.items()]
    for seed in SEEDS:
        for name in SYSTEMS:
            changes = {"seed": seed, "steps": steps_of(name), "eval.every": 0} | CODES.get(name, {})
            members.append((f"{name}_{seed}", f"{CONFIGS / 'scenes_systems.py'}:{name}{SUFFIX}", changes))
    return members
