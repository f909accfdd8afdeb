"""Does a run of scenes use its captions? Its error in pictures with the right words, and with other colours or shapes.

  python experiments/scenes_table/captions_used.py --workdir runs/scenes_transfusion

Prints the mean squared error of the velocity of held-out pictures at several times (0 is noise), with the caption as it
is, with every colour in it replaced by another one, and with every shape. The noise is the same in all three. A run
that ignores its captions has three equal columns.
"""

import argparse
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.data.scenes.graph import COLOURS, SHAPES
from transfusion.evaluation.losses import item_means, velocity_errors
from transfusion.evaluation.measures import Measures

TIMES = (0.1, 0.3, 0.5, 0.7)
BATCHES = 40


def replaced(tokens: np.ndarray, words: list[int], draw: np.random.Generator) -> np.ndarray:
    """Tokens in which each of the words is another one of them."""
    at = {word: i for i, word in enumerate(words)}
    change = np.vectorize(lambda t: words[(at[t] + draw.integers(1, len(words))) % len(words)] if t in at else t)
    return change(tokens).astype(tokens.dtype)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True, help="folder of the run, whose words are tokens")
    measures, draw = Measures(parser.parse_args().workdir), np.random.default_rng(0)
    task, params = measures.run.task, measures.run.params
    ids = [[int(task.tokenizer.encode(f" {word}")[0]) for word in words] for words in (COLOURS, SHAPES)]
    error = jax.jit(lambda batch, time, key: velocity_errors(task, params, batch, "image", time, key))
    found = {time: ([], [], []) for time in TIMES}
    for i, batch in enumerate(itertools.islice(measures.held_out(), BATCHES)):
        text, key = batch["text"], jax.random.fold_in(jax.random.key(0), i)
        tokens = np.asarray(text.tokens)
        told = [tokens, *(replaced(tokens, words, draw) for words in ids)]
        for (time, columns), (column, said) in itertools.product(found.items(), enumerate(told)):
            other = batch | {"text": dataclasses.replace(text, tokens=jnp.asarray(said))}
            columns[column].append(item_means(batch["image"], np.asarray(error(other, time, key))))
    print("| time | right words | other colours | other shapes |\n|---|---|---|---|")
    for time, columns in found.items():
        print(f"| {time} | " + " | ".join(f"{np.concatenate(column).mean():.4f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
