r"""Weights of released checkpoints in and out.

  python -m transfusion.interop import FOLDER --workdir runs/sd_vae
  python -m transfusion.interop export FOLDER --workdir runs/sd_vae

FOLDER is a checkpoint as published: config.json, *.safetensors (in one file or several with an index) and the files of
the tokenizer. `import` writes a new workdir, which the other programs open as any run (an autoencoder: as codec.path).
`export` writes FOLDER in the form that was imported, with the files of the tokenizer; of a run that was trained
further, name the imported workdir with --source. What the form has no place for is refused, or left out with --drop.
"""

from collections.abc import Sequence

from absl import flags

from transfusion import programs
from transfusion.errors import UsageError, nearest
from transfusion.interop.export import DTYPE_NAMES, export_checkpoint
from transfusion.interop.workdir import import_checkpoint

ACTIONS = ("import", "export")


def main(argv: Sequence[str]) -> None:
    command, folder = [*argv[1:], "", ""][:2]
    if command not in ACTIONS:
        raise UsageError(f"give 'import FOLDER' or 'export FOLDER', not {command!r}{nearest(command, ACTIONS)}")
    if not folder:
        raise UsageError(f"{command} needs a folder: python -m transfusion.interop {command} FOLDER --workdir W")
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of the run")
    # Without set_up_jax: it makes malloc keep what is freed, and weights are to leave no trace in memory.
    if command == "import":
        family = import_checkpoint(
            folder, FLAGS.workdir, text_as_bytes=FLAGS.bytes, ignore_fields=FLAGS.ignore_field,
            follow_links=FLAGS.follow_links,
        )  # fmt: skip
        print(f"imported {folder} ({family.name}) into {FLAGS.workdir}")
        return
    if FLAGS.max_shard_gb is not None and not 0 < FLAGS.max_shard_gb < 1e6:
        raise UsageError(f"--max_shard_gb must be positive, not {FLAGS.max_shard_gb}")
    size = None if FLAGS.max_shard_gb is None else max(int(FLAGS.max_shard_gb * 1e9), 1)
    dropped = export_checkpoint(
        FLAGS.workdir, folder, source=FLAGS.source, dtype=FLAGS.dtype, max_shard_bytes=size, drop=FLAGS.drop
    )
    if dropped:
        print(f"left out {len(dropped)} parameters: {', '.join(dropped)}")
    print(f"exported {FLAGS.workdir} to {folder}")


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run: written by import, read by export.")
    flags.DEFINE_string("source", None, "Export in the form of this imported workdir (default: --workdir).")
    flags.DEFINE_enum("dtype", None, list(DTYPE_NAMES), "Dtype of the exported arrays (default: as imported).")
    flags.DEFINE_float("max_shard_gb", None, "Split exported weights into files of at most this many GB.")
    flags.DEFINE_multi_string(
        "drop", [], "Export without these parameters, which the form has no place for: 'parts/image/*'. Repeatable."
    )
    flags.DEFINE_bool("bytes", False, "Import a model of text without its tokenizer: text is bytes.")
    flags.DEFINE_multi_string("ignore_field", [], "Import in spite of this field of config.json. Repeatable.")
    flags.DEFINE_bool("follow_links", False, "Import through links that lead out of FOLDER.")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main, files=2)
