"""The report of a run: one self-contained HTML file, readable without a network, in light and dark mode.

  python -m transfusion.report --workdir runs/digits

It draws its own samples from the newest intact checkpoint and takes scores from evaluation.json; what is missing is
said on the page.
"""

import os
import pathlib

from absl import flags

from transfusion import programs, storage
from transfusion.errors import UsageError
from transfusion.evaluation import page
from transfusion.evaluation.sections import experts, images, numbers, origin, telemetry
from transfusion.evaluation.sections.material import Material, read_material
from transfusion.running.jax_setup import set_up_jax
from transfusion.workdir.config_file import read_experiment

# Name in the page's address, title, and what makes it.
SECTIONS = (
    ("scores", "Scores", numbers.scores),
    ("curves", "Training", numbers.curves),
    ("telemetry", "Inside the model", telemetry.telemetry),
    ("experts", "Experts", experts.experts),
    ("samples", "Images drawn from captions", images.samples),
    ("trajectory", "From noise to an image", images.from_noise),
    ("captions", "Captions of held-out images", images.captions),
    ("mask", "What a packed row looks like", origin.packed_row),
    ("origin", "How these numbers were made", origin.origin),
)


def report_page(material: Material) -> str:
    """The page, as HTML."""
    sections = [(name, title, make(material)) for name, title, make in SECTIONS]
    sections = [section for section in sections if section[2]]
    title = f"Training report: {material.workdir.resolve().name}"
    return page.page(title, numbers.header(material), sections)


def write_report(workdir: str | os.PathLike, seed: int = 0) -> pathlib.Path:
    """Writes the workdir's report.html and returns its path.

    Raises:
      UsageError: if the workdir holds no run that samples or cannot be written, or its data is missing.
    """
    path = pathlib.Path(workdir) / "report.html"
    read_experiment(workdir)  # is it a run?
    storage.check_writable(path)  # before a minute of work
    storage.write_whole(path, report_page(read_material(workdir, seed)))
    return path


def main(argv) -> None:
    set_up_jax()
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: the folder of a training run, for example runs/digits")
    path = write_report(FLAGS.workdir, FLAGS.seed)
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_integer("seed", 0, "Of the noise of the samples.")
    programs.run(main)
