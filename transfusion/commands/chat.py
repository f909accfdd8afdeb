"""Talks to a trained run in the terminal, turn by turn; the model reads what is new in a turn only.

  transfusion chat --workdir runs/mine --system 'Be brief.'
  > What is this? <image:photo.png>
  > /draw a handwritten seven
  > /quit

A line is a turn. <image:PATH>, <video:PATH> and <sound:PATH> stand for what files hold; /draw asks for a drawing, which
is saved in WORKDIR/samples. The run should have learned conversations (`transfusion.sequence.chat`).
"""

import contextlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from transfusion import programs, sample
from transfusion.api import MOST_SEED, Trained, load_run
from transfusion.api.chat import Chat
from transfusion.api.settings import define_settings, settings_given
from transfusion.errors import UsageError
from transfusion.running.jax_setup import set_up_jax

DRAW, QUIT = "/draw", "/quit"


def main(argv: Sequence[str]) -> None:
    del argv
    set_up_jax()
    sys.stdout.reconfigure(errors="backslashreplace")
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: give the folder of a training run, for example --workdir runs/digits")
    settings = settings_given()
    run = load_run(FLAGS.workdir)
    chat = run.chat(FLAGS.system, seed=FLAGS.seed, **settings)
    with contextlib.suppress(EOFError):
        while (line := input("> ").strip()) != QUIT:
            if line:
                turn(run, chat, line)


def turn(run: Trained, chat: Chat, line: str) -> None:
    """Says a line and prints the answer; a mistake in the line is told, and the conversation goes on."""
    draw = line == DRAW or line.startswith(f"{DRAW} ")
    said = line.removeprefix(DRAW).strip() if draw else line
    number = len(chat.turns)
    try:
        answer = chat.say(*sample.read_prompt(run, said), draw=draw)
    except UsageError as error:
        print(f"error: {error}")
        return
    for i, part in enumerate(answer):
        if isinstance(part, np.ndarray):
            name = f"chat-{FLAGS.seed}-{number}-{i}{sample.suffix_of(part)}"
            sample.save(run, part, sample.samples_folder(FLAGS.workdir) / name)
        else:
            print(part)


def define_flags() -> None:
    """The program's flags; the settings of the sampler are among them."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("system", "", "The system prompt.")
    flags.DEFINE_integer("seed", 0, "Same seed and same turns, same answers.", lower_bound=0, upper_bound=MOST_SEED)
    define_settings()


FLAGS = flags.FLAGS

if __name__ == "__main__":
    define_flags()
    programs.run(main)
