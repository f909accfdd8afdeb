"""Makes the tokenizer of the benchmark of scenes: most words of captions and questions are one token.

  python experiments/scenes/tokens.py

Writes configs/scenes_words.json: pairs of bytes, merged within words (byte-level BPE), learned on what training records
say, of each task. Every other text has its bytes, so nothing is lost.
"""

import itertools
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from transfusion.data.scenes import tasks

FILE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "scenes_words.json"
TASKS = ("captions", "facts", "listed", "questions", "edits", "stories", "subjects", "clips")
RECORDS = 5_000  # of each task


def texts():
    for task, number in itertools.product(TASKS, range(RECORDS)):
        yield from tasks.draw(task, "train", number).texts


def main() -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, min_frequency=20, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts(), trainer)
    made.save(str(FILE), pretty=False)
    lengths = [len(made.encode(text).ids) for text in texts()]
    print(f"{made.get_vocab_size()} tokens; at most {max(lengths)} and {sum(lengths) / len(lengths):.1f} on average")
    print(" ".join(made.encode("there is a red circle beside a blue triangle").tokens))


if __name__ == "__main__":
    main()
