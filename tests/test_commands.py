"""The program `transfusion`: its commands, their help, completion, and configs by name."""

import pathlib
import subprocess
import sys

import pytest
from program import Forked, run_program

from transfusion.commands import completion, program
from transfusion.commands.config import as_flag
from transfusion.commands.table import COMMANDS
from transfusion.config import Experiment
from transfusion.config.describe import sections
from transfusion.config.named import forms, path_of, shipped, with_paths
from transfusion.config.override import with_fields
from transfusion.errors import UsageError
from transfusion.programs import load_experiment

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def test_the_list_of_commands_has_each_with_one_line(capsys):
    program.main([])
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert max(map(len, listed.splitlines())) <= 120


def test_every_program_of_the_library_is_a_command():
    files = [*(ROOT / "transfusion").glob("*.py"), *(ROOT / "transfusion").glob("*/__main__.py")]
    programs = {path for path in files if "programs.run(" in path.read_text()}
    names = {f"transfusion.{path.parent.name if path.stem == '__main__' else path.stem}" for path in programs}
    assert len(names) > 12 and names <= {command.module for command in COMMANDS.values()}


def test_a_wrong_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(["trian"])
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err == "error: no command 'trian' (did you mean 'train'?): transfusion --help lists them\n"
    )


def test_help_has_all_flags_and_all_fields_with_their_values_and_meaning(tmp_path):
    code, out, err = run_program(tmp_path, "transfusion.commands", "train", "--config=digits:unet", "--help")
    assert (code, err) == (0, "")
    assert "--supervise" in out and "--processes=N" in out and "--dry_run" in out  # of other modules, too
    assert "  steps=850 " in out and "updates of the parameters" in out
    fields = [f"  {s.path}.{f.name}".replace(" .", " ") for s in sections(Experiment) for f in s.fields]
    assert not [field for field in fields if field not in out]
    assert "--pdb" not in out


def test_what_the_sampler_has_is_explained_by_help(tmp_path):
    out = run_program(tmp_path, "transfusion.sample", "--help").out
    line = next(line for line in out.splitlines() if line.startswith("  --guidance="))
    assert "Default: the config's sampling.guidance." in out and len(line.split()) > 4


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    assert shipped().keys() == {path.stem for path in CONFIGS.glob("*.py")}
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits.py", "configs/digits.py"):
        assert path_of(name) == str(CONFIGS / "digits.py")
    assert load_experiment("digits:debug") == load_experiment(f"{CONFIGS / 'digits.py'}:debug")
    given = with_paths(["x", "--config=digits:unet", "--config", "emoji", "--config.steps=3", "--workdir=digits"])
    assert given == [
        "x", f"--config={CONFIGS / 'digits.py'}:unet", "--config", str(CONFIGS / "emoji.py"), "--config.steps=3",
        "--workdir=digits",
    ]  # fmt: skip
    (tmp_path / "digits").mkdir()  # a folder of this name is no config
    assert path_of("digits") == str(CONFIGS / "digits.py")
    (tmp_path / "digits.py").write_text("")  # a file is
    assert path_of("digits.py") == "digits.py"
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        load_experiment("digit")
    assert "unet" in forms(CONFIGS / "digits.py")


def test_fields_are_set_from_python():
    digits = load_experiment("digits:debug")
    changed = with_fields(digits, {"optim.learning_rate": 1e-4, "streams.image.budget": 64, "model": digits.model})
    assert (changed.optim.learning_rate, changed.streams["image"].budget) == (1e-4, 64)
    assert with_fields(digits, {}) == digits
    with pytest.raises(UsageError, match="did you mean 'learning_rate'"):
        with_fields(digits, {"optim.learning_rat": 1})
    with pytest.raises(UsageError, match="config.steps must be of type int"):
        with_fields(digits, {"steps": "many"})


def test_configs_are_printed_compared_and_listed(tmp_path, tiny_run):
    def config(*arguments):
        return Forked(tmp_path / str(len(list(tmp_path.iterdir()))), "transfusion.commands.config", *arguments)

    printed = config("print", "digits:unet", "--config.steps=3", "--changed")
    compared = config("diff", "digits", "digits:unet")
    with_run = config("diff", "digits:debug", str(tiny_run))
    wrong = config("print", "digits", "--config.stps=3")
    lines = printed.result().out.splitlines()
    assert lines[0] == "steps = 3" and 'streams.image.embed = "unet"' in lines
    assert 'streams.image.embed: "linear" -> "unet"' in compared.result().out.splitlines()
    assert "sampling.max_tokens: 32 -> 8" in with_run.result().out.splitlines()
    assert wrong.result() == (2, "", "error: --config: unknown field 'stps' (did you mean 'steps'?)\n")
    assert as_flag(["x", "check", str(tiny_run)])[2].endswith("config.json")


def test_a_dry_run_tells_what_a_run_would_do_and_writes_nothing(tmp_path, tiny_run, data_dir):
    def dry(workdir, *flags):
        given = ("--config=digits:debug", f"--config.data.data_dir={data_dir}", f"--workdir={workdir}", "--dry_run")
        return Forked(tmp_path / str(len(list(tmp_path.iterdir()))), "transfusion.train", *given, *flags)

    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    new, continued = dry(tmp_path / "new"), dry(tiny_run, "--config.steps=30")
    missing = dry(tmp_path / "new", f"--config.data.data_dir={tmp_path}")
    code, out, _ = new.result()
    assert code == 0 and "a new run" in out and "1,500 records of digits" in out and "filled to 9" in out
    assert "at step 20: 10 of 30 steps" in continued.result().out and "as its steps so far" in continued.result().out
    assert missing.result().code == 2
    assert not (tmp_path / "new").exists()
    assert before == {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}


def test_bash_completes_commands_flags_configs_and_fields(tmp_path):
    found = completion.words()
    (tmp_path / "completion.bash").write_text(completion.bash(found))
    code = r"""
source ./completion.bash
try() {
  COMP_LINE="$1"; COMP_POINT=${#1}; shift; COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
  _transfusion 2>/dev/null; echo "${COMPREPLY[@]}"
}
try "transfusion ev" transfusion ev
try "transfusion train --sup" transfusion train --sup
try "transfusion train --config=digits:u" transfusion train --config = digits : u
try "transfusion train --config.optim.lea" transfusion train --config.optim.lea
"""
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["evaluate", "--supervise", "unet", "--config.optim.learning_rate="]
    for shell in (completion.zsh, completion.fish):
        assert all(name in shell(found) for name in COMMANDS)


def test_importing_the_table_of_commands_loads_nothing_heavy():
    code = "import sys, transfusion.commands.program; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False False\n"
