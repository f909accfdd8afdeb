"""The notebooks run from top to bottom, in a fresh folder, with few training steps, and are those of their sources."""

import pathlib

import pytest
import tiny  # noqa: F401, for its XLA flags, which the kernel inherits

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "experiments" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
# Pictures of each, and words that it prints.
SHOWN = {
    "first_steps": (5, "a handwritten"),
    "own_images": (3, "wrote"),
    "edit_and_chat": (2, ""),
    "new_modality": (1, "the model says"),
    "images_for_a_language_model": (1, "arrays of the text expert are as they were"),
    "compare_and_scale": (1, "scaling.json"),
}
MOST_BYTES = 1_000_000


def run(name: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, steps: int = 4) -> None:
    """Runs a notebook in a folder and looks for what it shows."""
    monkeypatch.setenv("TRANSFUSION_NOTEBOOK_STEPS", str(steps))
    monkeypatch.setenv("TRANSFUSION_NOTEBOOK_FOLDER", str(folder))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures, words = SHOWN[name]
    with_pictures = [cell for cell in code if any("image/png" in out.get("data", {}) for out in cell.outputs)]
    assert len(with_pictures) >= pictures
    printed = "".join(str(out.get("text", "")) for cell in code for out in cell.outputs)
    assert words in printed


@pytest.mark.soak
def test_first_steps(tmp_path, monkeypatch):
    run("first_steps", tmp_path, monkeypatch)
    assert (tmp_path / "runs" / "first_steps" / "checkpoints" / "4").is_dir()


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in NAMES if name != "first_steps"])
def test_the_others(name, tmp_path, monkeypatch):
    run(name, tmp_path, monkeypatch, steps=9 if name == "compare_and_scale" else 4)


def test_there_are_six_and_their_page_lists_them():
    assert set(NAMES) == set(SHOWN) == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    page = (NOTEBOOKS.parents[1] / "docs" / "notebooks.md").read_text()
    assert not [name for name in NAMES if f"(../experiments/notebooks/{name}.ipynb)" not in page]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_that_of_its_source(name):
    jupytext = pytest.importorskip("jupytext")
    path = NOTEBOOKS / f"{name}.ipynb"
    cells = nbformat.read(path, 4).cells
    source = jupytext.read(NOTEBOOKS / f"{name}.py")
    assert [(c.cell_type, c.source) for c in cells] == [(c.cell_type, c.source) for c in source.cells], (
        "run: jupytext --update --to ipynb experiments/notebooks/*.py"
    )
    assert path.stat().st_size < MOST_BYTES
    assert not any(cell.get("outputs") for cell in cells)
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert max(len(cell.source.splitlines()) for cell in code) <= 35
    assert sum(cell.cell_type == "markdown" for cell in cells) * 2 >= len(code)
    assert f"/github/transfusion-jax/transfusion/blob/main/experiments/notebooks/{name}.ipynb)" in cells[0].source
    assert '"pip", "install"' in code[0].source and "transfusion[demo]" in code[0].source
