"""configs/README.md, the list of what can be trained, is what the config files say of themselves."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def listing():
    path = ROOT / "experiments" / "house" / "list_configs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(listing):
    page = (ROOT / "configs" / "README.md").read_text()
    assert page == listing.page(), "run: python experiments/house/list_configs.py"


def test_a_config_is_listed_by_its_docstring(listing, tmp_path):
    path = tmp_path / "snail.py"
    path.write_text(
        '"""Snail (arXiv 1) on sounds: slow\nreading. More.\n\nWhat: x.\n'
        "Hardware: a shell. Time and results: experiments/snails. `configs/snail.py:debug` is fast.\n"
        '"""\nFORMS = ("", "debug")\n'
    )
    assert listing.row(path) == (
        "[`snail.py`](snail.py)",
        "Snail (arXiv 1) on sounds",
        "`debug`",
        "a shell. Time and results: [snails](../experiments/snails)",
        "slow reading.",
    )
    path.write_text('"""Snails.\n"""\n')
    with pytest.raises(ValueError, match=r"snail\.py: the docstring must begin with 'SYSTEM: what it shows\.'"):
        listing.row(path)
