"""Looks at a folder of images and writes a config that fits it: sizes, patches, budgets, batch and held-out images.

  transfusion new --images photos
  transfusion new --images photos --resolution 64 --output photos64.py

Captions are taken from a table (captions.csv, metadata.jsonl, ...), from .txt files beside the images, or from the
names of folders or files; where the library cannot read them in place, they are written into NAME_captions.jsonl beside
the config. The folder itself is not changed.
"""

import os
import pathlib
from collections.abc import Sequence

from absl import flags

from transfusion import new, programs, storage
from transfusion.errors import UsageError
from transfusion.new import write
from transfusion.planning import forecast


def main(argv: Sequence[str]) -> None:
    del argv
    if not FLAGS.images:
        raise UsageError("--images is missing: give a folder of images, for example --images photos")
    name = pathlib.Path(os.path.abspath(FLAGS.images)).name
    output = pathlib.Path(FLAGS.output or f"{''.join(c if c.isalnum() else '_' for c in name)}.py")
    captions = output.with_name(f"{output.stem}_captions.jsonl")
    if output.suffix != ".py":
        raise UsageError(f"--output={output}: a config is a file whose name ends in .py")
    if (output.exists() or captions.exists()) and not FLAGS.overwrite:
        raise UsageError(f"{output if output.exists() else captions} exists: give another --output, or --overwrite")
    found = new.look(FLAGS.images)
    chosen = new.plan(found, FLAGS.resolution, FLAGS.patch)
    own = "" if found.source.captions else str(captions.resolve())
    if own:
        storage.write_whole(own, write.captions_text(found))
    storage.write_whole(output, new.config_text(found, chosen, output.name, own))
    print(f"{len(found.captions)} images; captions: {found.how}")
    for line in (write.why_side(found, chosen), write.why_row(chosen), write.why_steps(found, chosen)):
        print(line)
    print(f"{chosen.held_out} images are held out" if chosen.hold_out else "too few images to hold some out")
    for bad in found.unreadable[:5]:
        print(f"left out: {bad}")
    print(f"wrote {output}{f' and {captions}' if own else ''}; the training would be:\n")
    print(forecast.text(forecast.forecast(programs.load_experiment(output))))
    print(f"\nBegin it with: transfusion train --config {output} --workdir runs/{output.stem}")


def define_flags() -> None:
    flags.DEFINE_string("images", None, "Folder of the images.")
    flags.DEFINE_string("output", None, "The config that is written; default: the folder's name with .py.")
    flags.DEFINE_integer("resolution", 0, "Pixels of a side; default: up to 32, as the images have.", 0, 4096)
    flags.DEFINE_integer("patch", 0, "Pixels of a patch's side; default: an eighth of the side.", 0, 4096)
    flags.DEFINE_bool("overwrite", False, "Replace a config that exists.")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main)
