"""The notebook runs from top to bottom, in a fresh folder, with few training steps."""

import pathlib

import pytest
import tiny  # noqa: F401, for its XLA flags, which the kernel inherits

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "experiments" / "notebooks"


@pytest.mark.slow
def test_first_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFUSION_NOTEBOOK_STEPS", "4")
    monkeypatch.setenv("TRANSFUSION_NOTEBOOK_FOLDER", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOKS / "first_steps.ipynb", 4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    with_pictures = [cell for cell in code if any("image/png" in out.get("data", {}) for out in cell.outputs)]
    assert len(with_pictures) == 5  # records, mask, curves, drawn digits, captioned digits
    assert (tmp_path / "runs" / "first_steps" / "checkpoints" / "4").is_dir()
    printed = "".join(out.get("text", "") for cell in code for out in cell.outputs)
    assert "a handwritten" in printed


def test_notebooks_are_stored_without_outputs_and_in_short_cells():
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        assert not any(cell.get("outputs") for cell in cells), path
        assert max(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code") <= 25
        assert sum(cell.cell_type == "markdown" for cell in cells) >= sum(cell.cell_type == "code" for cell in cells)
