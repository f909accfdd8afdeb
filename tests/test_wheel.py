"""The wheel works without a checkout: built, installed into a folder of its own, and used from elsewhere."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """A folder in which the wheel, and nothing else, is installed."""
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("building needs setuptools 77 or later, which the extra `dev` brings")
    folder = tmp_path_factory.mktemp("wheel")
    tree, target = folder / "tree", folder / "installed"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        tree.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree)
    for name in ("transfusion", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    pip = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", *pip], check=True, capture_output=True)
    return target


def run(installed: pathlib.Path, folder: pathlib.Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_wheel_has_every_module_every_config_and_its_types(installed):
    here = {path.relative_to(ROOT) for part in ("transfusion", "configs") for path in (ROOT / part).rglob("*.py")}
    there = {path.relative_to(installed) for path in installed.rglob("*.py")}
    moved = {pathlib.Path("transfusion") / path if path.parts[0] == "configs" else path for path in here}
    assert there == moved
    others = {path.relative_to(ROOT) for path in (ROOT / "transfusion").rglob("packaged/digits/*") if path.is_file()}
    assert others and all((installed / path).is_file() for path in (*others, "transfusion/py.typed"))
    # Tokenizers that configs read, and their list.
    beside = {path.name for path in (ROOT / "configs").iterdir() if path.suffix in (".json", ".md")}
    assert beside and all((installed / "transfusion" / "configs" / name).is_file() for name in beside)


def test_its_program_is_used_from_a_folder_without_a_checkout(installed, tmp_path):
    program = str(installed / "bin" / "transfusion")
    forecast = run(installed, tmp_path, program, "train", "--config=scenes:debug", "--workdir=run", "--dry_run")
    assert "a new run in run: 20 of 20 steps" in forecast and "records of" in forecast
    assert not (tmp_path / "run").exists()


def test_its_python_names_configs_and_lists_commands(installed, tmp_path):
    code = """
import transfusion
from transfusion.commands.program import main

print(transfusion.__file__)
print(transfusion.experiment("digits", **{"optim.learning_rate": 1e-3}).optim.learning_rate)
main(["--help"])
"""
    where, rate, *listed = run(installed, tmp_path, sys.executable, "-c", code).splitlines()
    assert where.startswith(str(installed)) and rate == "0.001"
    assert any(line.startswith("  train ") for line in listed)


def test_its_readme_leads_to_the_sources_and_the_tests_stay_out(installed):
    (info,) = installed.glob("*.dist-info")
    assert not list(installed.rglob("tests"))
    assert not re.search(r"\]\((?!https?:|#)", (info / "METADATA").read_text())  # no link needs a checkout
    assert "transfusion = transfusion.commands.program:main" in (info / "entry_points.txt").read_text()
