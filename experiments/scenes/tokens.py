"""Makes the tokenizer of the benchmark of scenes: most words of captions and questions are one token.

  python experiments/scenes/tokens.py

Writes configs/scenes_words.json: pairs of bytes, merged within words (byte-level BPE), learned on training captions,
questions and answers alone. Every other text has its bytes, so nothing is lost.
"""

import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from transfusion.data.scenes import tasks

FILE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "scenes_words.json"
RECORDS = 20_000


def texts():
    for number in range(RECORDS):
        yield tasks.draw("captions", "train", number).texts[0]
        question, answer = tasks.draw("facts", "train", number).texts
        yield from (f"{question} ", answer)


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
