"""Which source made a number, and programs that are started from a folder of configs."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from program import Forked

from transfusion.running import provenance

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SAY = "import json; from transfusion.running.provenance import code; print(json.dumps(code()))"


def code(folder, **environment):
    """`provenance.code()` of the package in a folder."""
    command = [sys.executable, "-c", SAY]
    around = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder)} | environment
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=around, cwd="/").stdout)


def git(folder, *arguments):
    name = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "-C", str(folder), *name, *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_and_whether_it_is_changed(tmp_path):
    shutil.copytree(ROOT / "transfusion", tmp_path / "transfusion", ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "-q")
    # In another's checkout, as inside of an environment, its commit says nothing of this package.
    (tmp_path / "other").write_text("x")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "x")
    outside = code(tmp_path)
    assert (outside["commit"], outside["dirty"]) == (None, None) and outside["source"]

    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "y")
    clean = code(tmp_path, GIT_DIR="/nowhere")  # as in a hook of another repository
    assert len(clean["commit"]) == 40 and clean["dirty"] is False and clean["source"] == outside["source"]
    with (tmp_path / "transfusion" / "optim.py").open("a") as file:
        file.write("# changed\n")
    changed = code(tmp_path)
    assert changed["dirty"] is True and changed["source"] != clean["source"] and changed["commit"] == clean["commit"]
    assert code(tmp_path, PATH="/nowhere")["commit"] is None  # without git


def test_every_command_says_its_code(tmp_path):
    provenance.record_command(tmp_path, 7, [{"field": "steps", "old": 7, "new": 9, "step": 7}])
    [row] = provenance.read_commands(tmp_path)
    assert row["code"] == provenance.code() and row["step"] == 7 and row["changes"][0]["new"] == 9
    assert row["code"]["source"] in provenance.code_text()


def test_no_config_has_the_name_of_our_package():
    """`python -m` puts the current folder first: a file of that name in it would be taken for the package."""
    assert not {"transfusion", *sys.stdlib_module_names} & {path.stem for path in CONFIGS.glob("*.py")}


def test_training_from_the_folder_of_the_configs(tmp_path):
    arguments = ("--config=dit.py:debug", f"--workdir={tmp_path / 'run'}", "--config.data.data_dir=nowhere")
    result = Forked(tmp_path / "said", "transfusion.train", *arguments, where=CONFIGS).result()
    # Its config, and the one that this builds on, are read; the data is not there.
    assert result.code == 2 and "nowhere" in result.err and "Traceback" not in result.err, result


def test_packages_go_before_files_of_the_current_folder(tmp_path):
    """But for them a config emoji.py would take the place of the package emoji, in a program started beside it."""
    (tmp_path / "hypothesis.py").write_text("raise SystemExit('the wrong file')")
    (tmp_path / "mine.py").write_text("name = 'neighbour'")
    script = (
        "import sys; sys.path.append(sys.argv[1]); from transfusion import programs; programs.packages_first();"
        "import hypothesis, mine; print(mine.name)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(ROOT)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "neighbour", done.stderr
