r"""Imports released checkpoints into workdirs, and exports workdirs in the form of the released checkpoint.

  python -m transfusion.interop import FOLDER --workdir runs/sd_vae
  python -m transfusion.interop export FOLDER --workdir runs/sd_vae

FOLDER is a checkpoint as published: config.json, *.safetensors (one file, or several with an index) and the files of
the tokenizer; to import it may be hf://OWNER/NAME on a hub. `import` writes a new workdir, which the other programs
open like any run (an autoencoder as codec.path). `export` writes FOLDER in the form that was imported, with the files
of the tokenizer. To export a run that was trained from an imported workdir, name that workdir with --source. Parameters
that the released form has no place for are refused, or left out with --drop.
"""

from collections.abc import Sequence

from absl import flags

from transfusion import programs
from transfusion.errors import UsageError, nearest
from transfusion.interop.export import DTYPE_NAMES, export_checkpoint
from transfusion.interop.importing import import_checkpoint
from transfusion.remote.hub import local_copy

ACTIONS = ("import", "export")


def main(argv: Sequence[str]) -> None:
    command, folder = [*argv[1:], "", ""][:2]
    if command not in ACTIONS:
        raise UsageError(f"give 'import FOLDER' or 'export FOLDER', not {command!r}{nearest(command, ACTIONS)}")
    if not folder:
        raise UsageError(f"{command} needs a folder: python -m transfusion.interop {command} FOLDER --workdir W")
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of the run")
    # `set_up_jax` is not called: it makes malloc keep freed memory, and all the weights would add up.
    if command == "import":
        folder = local_copy(folder)
        family = import_checkpoint(
            folder, FLAGS.workdir, text_as_bytes=FLAGS.bytes, ignore_fields=FLAGS.ignore_field,
            follow_links=FLAGS.follow_links,
        )  # fmt: skip
        print(f"imported {argv[2]} ({family.name}) into {FLAGS.workdir}")
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
        "drop", [], "Leave out parameters that the form has no place for, such as 'parts/image/*'. Repeatable."
    )
    flags.DEFINE_bool("bytes", False, "Import a text model without its tokenizer: text is then bytes.")
    flags.DEFINE_multi_string(
        "ignore_field", [], "Pass over this field of config.json, which is not understood. Repeatable."
    )
    flags.DEFINE_bool("follow_links", False, "Follow links that lead out of FOLDER.")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main, files=2)
