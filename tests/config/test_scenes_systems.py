"""The systems on scenes: each is its own config on another base, and all have the same budget of FLOPs."""

import json
import pathlib
import runpy
import tomllib

import pytest

from transfusion.errors import UsageError
from transfusion.programs import in_place_of, load_experiment
from transfusion.tasks import make_task

ROOT = pathlib.Path(__file__).parents[2]
SYSTEMS = ROOT / "configs" / "scenes_systems.py"
TABLE = ROOT / "experiments" / "scenes_table"
FORMS = runpy.run_path(str(SYSTEMS))["FORMS"]


@pytest.mark.parametrize("form", FORMS)
def test_a_system_on_scenes_has_nothing_of_digits(form):
    system = load_experiment(f"{SYSTEMS}:{form}")
    sources = [*system.data.sources.values(), *system.eval.sources.values()]
    assert {source.kind for source in sources} == {"scenes"} and not system.data.shift
    assert "digits" not in json.dumps([system.codec.path, system.init.path, system.sampling.negative])
    make_task(system)


def test_a_system_on_scenes_is_the_same_change_as_on_digits():
    dense, mot = (load_experiment(f"{SYSTEMS}:{form}") for form in ("transfusion", "mot"))
    assert dense == load_experiment(ROOT / "configs/scenes_dense.py")
    assert {name: stream.expert for name, stream in mot.streams.items()} == {"text": "text", "image": "image"}
    assert (mot.data, mot.optim, mot.layout) == (dense.data, dense.optim, dense.layout)


@pytest.mark.parametrize("form", ["showo", "dimoo", "var", "janus"])
def test_a_code_has_as_many_numbers_as_its_codec_gives(form):
    """Those systems begin with the codec's codes, and the latents of one claim are those of its Gaussian form."""
    system = load_experiment(f"{SYSTEMS}:{form}")
    codec = load_experiment(f"{ROOT / 'configs/scenes_vq.py'}{':multiscale' if form == 'var' else ''}")
    assert system.streams["image"].channels == codec.autoencoder.latent_channels
    claim = tomllib.loads((ROOT / "experiments/claims/latents_or_pixels/claim.toml").read_text())
    latents = load_experiment(f"{ROOT / 'configs/scenes_vq.py'}:kl").autoencoder.latent_channels
    assert claim["systems"]["latents"]["changes"]["streams.image.channels"] == latents


def test_another_file_is_read_in_a_context_alone(tmp_path):
    base, other = tmp_path / "base.py", tmp_path / "other.py"
    config = "from transfusion.config import Experiment, to_config_dict\n"
    base.write_text(config + "def get_config(form=''): return to_config_dict(Experiment(steps=1))\n")
    other.write_text(config + "def get_config(form=''): return to_config_dict(Experiment(steps=2 + len(form)))\n")
    with in_place_of({base: other}):
        assert load_experiment(base).steps == 2 and load_experiment(f"{base}:four").steps == 6
        with in_place_of({base: f"{other}:debug"}):
            assert load_experiment(tmp_path / "x" / ".." / "base.py").steps == 7
            assert load_experiment(f"{base}:four").steps == 2 + len("four_debug")
    assert load_experiment(base).steps == 1
    with pytest.raises(UsageError, match="steps"), in_place_of({base: tmp_path / "steps.py"}):
        load_experiment(base)


def test_all_members_of_the_table_have_one_budget():
    module = runpy.run_path(str(TABLE / "sweep.py"))
    members = {name: changes for name, _, changes in module["get_sweep"]()}
    counts = json.loads((TABLE / "counts.json").read_text())["cpu"]
    assert set(module["SYSTEMS"]) == set(FORMS) == set(counts) and len(counts) >= 20 and len(module["SEEDS"]) == 3
    for name in counts:
        for seed in module["SEEDS"]:
            steps = members[f"{name}_{seed}"]["steps"]
            assert steps * counts[name] == pytest.approx(module["BUDGET"], rel=0.02), name
