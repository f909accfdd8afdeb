r"""Gives a run to public benchmarks.

  python -m transfusion.adapters lm_eval --workdir runs/text --tasks arc_easy,mine --tasks_dir tasks --output a.json
  python -m transfusion.adapters geneval --workdir runs/omni --prompts evaluation_metadata.jsonl --output drawings
  python -m transfusion.adapters dpg --workdir runs/omni --prompts dpg_bench/prompts --output drawings
  python -m transfusion.adapters wise --workdir runs/omni --prompts data --output drawings
  python -m transfusion.adapters cleanfid --workdir runs/omni --prompts captions_val2014.json --output drawings
  python -m transfusion.adapters similarity --model siglip-base-patch16-224 --prompts prompts.jsonl --output drawings

`lm_eval` runs tasks of EleutherAI's harness (extra `lm-eval`). `similarity` scores the drawings of
`transfusion.sample --prompts` against their texts by a released CLIP or SigLIP. The others draw a benchmark's prompts
into DIR/images, under the names that its own scorer reads, and print the scorer's command; the same command again goes
on where it was stopped.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from transfusion import programs
from transfusion.adapters import batches, drawings, folders, lm_harness
from transfusion.adapters.lines import read_lines
from transfusion.api import MOST_SEED, load_run
from transfusion.api.settings import define_settings, settings_given
from transfusion.errors import UsageError, nearest
from transfusion.evaluation.similarity import Similarity
from transfusion.running.jax_setup import set_up_jax

ACTIONS = ("lm_eval", *folders.SCORERS, "similarity")


def main(argv: Sequence[str]) -> None:
    set_up_jax()
    action = [*argv[1:], ""][0]
    if action not in ACTIONS:
        raise UsageError(f"give one of {', '.join(ACTIONS)}, not {action!r}{nearest(action, ACTIONS)}")
    if action == "similarity":
        return similarity()
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of a training run, for example --workdir runs/digits")
    if action == "lm_eval":
        return harness()
    need("prompts", "output")
    draw(action)


def need(*names: str) -> None:
    """Raises a UsageError if one of these flags is not given."""
    for name in names:
        if not getattr(FLAGS, name):
            raise UsageError(f"--{name} is missing: {FLAGS[name].help}")


def similarity() -> None:
    """Scores drawings against their texts."""
    need("model", "prompts", "output")
    lines = read_lines(FLAGS.prompts, FLAGS.num or 1)
    scores, missing = drawings.score_drawings(Similarity(FLAGS.model), lines, pathlib.Path(FLAGS.output), FLAGS.seed)
    for name, score in scores.items():
        print(f"{name}  {score['value']:.4g}  [{score['low']:.4g} to {score['high']:.4g}]  n = {score['count']}")
    if missing:
        print(f"{missing} pictures of these prompts are not there yet", file=sys.stderr)


def harness() -> None:
    """Runs tasks of lm-eval."""
    need("tasks")
    lm = lm_harness.open_lm(FLAGS.workdir, rows=FLAGS.batch, max_length=FLAGS.max_length)
    results = lm_harness.evaluate(lm, FLAGS.tasks, FLAGS.tasks_dir, FLAGS.limit or None, FLAGS.fewshot)
    path = FLAGS.output or pathlib.Path(FLAGS.workdir) / "lm_eval.json"
    lm_harness.save(results, path, lm.run)
    print(lm_harness.table(results))
    print(f"written to {path}")


def draw(name: str) -> None:
    """Draws the prompts of a benchmark."""
    settings = settings_given()
    folder = folders.open_folder(
        load_run(FLAGS.workdir), name, FLAGS.prompts, FLAGS.output, settings,
        seed=FLAGS.seed, number=FLAGS.num, limit=FLAGS.limit, rows=FLAGS.batch,
    )  # fmt: skip
    total = sum(line.number for line in folder.batches.lines)
    drawn, before = folder.work(lambda result: print(f"{result['files'][0]}", flush=True))
    print(f"drew {drawn} of {total}, {before} were there before; the scorer's command:", file=sys.stderr)
    print(folder.command())


def define_flags() -> None:
    """The program's flags; each field of SamplerConfig is one."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_list("tasks", [], "Names of lm-eval's tasks, or of those in --tasks_dir.")
    flags.DEFINE_string("tasks_dir", "", "Folder of YAML files with tasks of your own.")
    flags.DEFINE_integer("fewshot", None, "Examples before each question; default: as the task says.", lower_bound=0)
    flags.DEFINE_integer("max_length", 0, "The most ids that are read at once; 0: a training row.", lower_bound=0)
    flags.DEFINE_string("model", None, "Folder of a released CLIP or SigLIP, for similarity.")
    flags.DEFINE_string("prompts", None, "The benchmark's file or folder of prompts.")
    flags.DEFINE_string(
        "output", None, "lm_eval: the file of the results (WORKDIR/lm_eval.json); else the folder of drawings."
    )
    flags.DEFINE_integer("limit", 0, "Only the first so many documents or prompts; 0: all.", lower_bound=0)
    flags.DEFINE_integer("num", 0, "Pictures of each prompt; 0: as the benchmark has it.", lower_bound=0)
    flags.DEFINE_integer("batch", batches.ROWS, "How many are computed at a time.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Same seed, same pictures.", lower_bound=0, upper_bound=MOST_SEED)
    define_settings()


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main, files=1)
