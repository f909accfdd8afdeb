r"""Weights of released checkpoints in and out.

  python -m transfusion.interop import FOLDER --workdir runs/sd_vae
  python -m transfusion.interop export FOLDER --workdir runs/sd_vae

FOLDER is a checkpoint as published: config.json and *.safetensors, in one file or several with an index. `import`
writes a new workdir, which the other programs open as any run (an autoencoder: as codec.path). `export` writes FOLDER
in the form that was imported; of a run that was trained further, name the imported workdir with --source.
"""

from collections.abc import Sequence

from absl import flags

from transfusion import programs
from transfusion.errors import UsageError, nearest
from transfusion.interop.workdir import DTYPE_NAMES, export_checkpoint, import_checkpoint

COMMANDS = ("import", "export")


def main(argv: Sequence[str]) -> None:
    command, folder = [*argv[1:], "", ""][:2]
    if command not in COMMANDS:
        raise UsageError(f"give 'import FOLDER' or 'export FOLDER', not {command!r}{nearest(command, COMMANDS)}")
    if not folder:
        raise UsageError(f"{command} needs a folder: python -m transfusion.interop {command} FOLDER --workdir W")
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of the run")
    # Without set_up_jax: it makes malloc keep what is freed, and weights are to leave no trace in memory.
    if command == "import":
        family = import_checkpoint(folder, FLAGS.workdir)
        print(f"imported {folder} ({family.name}) into {FLAGS.workdir}")
        return
    size = None if FLAGS.max_shard_gb is None else max(int(FLAGS.max_shard_gb * 1e9), 1)
    export_checkpoint(FLAGS.workdir, folder, source=FLAGS.source, dtype=FLAGS.dtype, max_shard_bytes=size)
    print(f"exported {FLAGS.workdir} to {folder}")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run: written by import, read by export.")
    flags.DEFINE_string("source", None, "Export in the form of this imported workdir (default: --workdir).")
    flags.DEFINE_enum("dtype", None, list(DTYPE_NAMES), "Dtype of the exported arrays (default: as imported).")
    flags.DEFINE_float("max_shard_gb", None, "Split exported weights into files of at most this many GB.")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main, files=2)
