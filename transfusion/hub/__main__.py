r"""Publishes a run: safetensors, config, tokenizer and a model card.

  python -m transfusion.hub publish runs/digits ./digits-published
  python -m transfusion.hub publish runs/digits OWNER/NAME --license=apache-2.0

With a folder as the target nothing leaves the machine. OWNER/NAME is a model on huggingface.co, or on the hub at
HF_ENDPOINT; it is made if it does not exist, and a new revision of it otherwise. The token is that of HF_TOKEN, or of
the file that `hf auth login` writes. `transfusion.load_run("hf://OWNER/NAME")`, and --workdir of `sample`, open either.
"""

from collections.abc import Sequence

from absl import flags

from transfusion import programs
from transfusion.errors import UsageError
from transfusion.hub.publish import publish, publish_on_hub
from transfusion.remote.hub import model_name

USAGE = "publish RUN OWNER/NAME, or publish RUN ./FOLDER"


def main(argv: Sequence[str]) -> None:
    action, run, target = [*argv[1:], "", "", ""][:3]
    if action != "publish" or not run or not target:
        raise UsageError(f"give {USAGE}")
    if target.startswith((".", "/", "~")):
        folder = publish(run, target, FLAGS.license)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"published {run} to {target} ({size / 1e6:.1f} MB); transfusion.load_run({target!r}) opens it")
        return
    if "/" not in target:
        raise UsageError(f"{target} is neither OWNER/NAME on a hub nor a folder; for a folder give ./{target}")
    name, revision = model_name(target)
    if revision:
        raise UsageError(f"{target}: a new revision is made; give {name}")
    url = publish_on_hub(run, name, FLAGS.license, private=FLAGS.private)
    print(f"published {run} as {url}; transfusion.load_run('hf://{name}') opens it")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("license", "", "Licence of the weights, such as apache-2.0 or cc-by-4.0, for the model card.")
    flags.DEFINE_bool("private", False, "Make a new model on the hub one that only its owner sees.")
    programs.run(main, files=3)
