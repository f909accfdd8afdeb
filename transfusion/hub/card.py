"""Writes the model card of a published run: what it is, how to load it, how good it is, and from what it was made."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transfusion import __version__
from transfusion.config import Experiment
from transfusion.data.config import SourceConfig
from transfusion.evaluation.score_table import FIXED, in_words, named_scores
from transfusion.hub.licences import licence_of
from transfusion.workdir.portable import name_of_tokenizer

_MOST_SCORES = 40


def model_card(
    name: str,
    experiment: Experiment,
    step: int,
    evaluation: Mapping[str, Any] | None,
    pictures: Sequence[str],
    licence: str,
    *,
    load: str,
    imported: bool = False,
) -> str:
    """The text of README.md, with the fields that hubs read in front.

    Args:
      name: of the model.
      step: the number of training steps of the weights.
      evaluation: the content of evaluation.json; None if the run was not evaluated.
      pictures: their names in the folder.
      licence: of the weights; '' if the one who publishes them did not say.
      load: what `transfusion.load_run` opens.
      imported: whether the weights are those of others.
    """
    parts = [
        _front(experiment, licence),
        f"# {name}\n\n{_what(experiment, step, imported)}",
        f"## Use\n\n{_use(experiment, load)}",
    ]
    if pictures:
        shown = "\n".join(f"![{path.split('/')[-1].removesuffix('.png')}]({path})\n" for path in pictures)
        parts.append(f"## Pictures\n\n{shown}")
    parts += [f"## Evaluation\n\n{_scores(evaluation)}", f"## Data\n\n{_data(experiment)}"]
    terms = licence or "not said by the one who published it"
    parts.append(
        f"## Licence\n\nOf the weights: {terms}. The terms of the data above hold as well"
        + (", and those of the weights that were imported (see the folder `tokenizer`)." if imported else ".")
    )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front(experiment: Experiment, licence: str) -> str:
    tags = ["transfusion", "jax", *sorted({stream.objective for stream in experiment.streams.values()} - {"none"})]
    lines = ["library_name: transfusion", *([f"license: {json.dumps(licence)}"] if licence else [])]
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    return "---\n" + "\n".join(lines) + "\n---"


def _what(experiment: Experiment, step: int, imported: bool) -> str:
    """What the model is, in one paragraph."""
    if experiment.task == "autoencoder":
        what = f"An autoencoder of the form `{experiment.autoencoder.form}`"
    else:
        kinds = " and ".join(f"`{name}` ({stream.objective})" for name, stream in experiment.streams.items())
        model = experiment.model
        what = f"One Transformer of {model.layers} layers and width {model.width} over the streams {kinds}"
    made = "imported from released weights" if imported else f"trained for {step:,} steps"
    tokenizer = name_of_tokenizer(experiment)
    reads = f" Its tokenizer is `{tokenizer}`." if tokenizer else ""
    return f"{what}, {made} with transfusion {__version__}.{reads} `config.json` has every setting."


def _use(experiment: Experiment, load: str) -> str:
    if experiment.task == "autoencoder":
        return f"```bash\npython -m transfusion.train --config MINE --config.codec.path={load} --workdir RUN\n```"
    lines = ("import transfusion", "", f"run = transfusion.load_run({load!r})", "print(run)  # what it reads and draws")
    return "\n".join(("```python", *lines, "```"))


def _scores(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated."
    found = named_scores(dict(evaluation))
    short = [(n, s) for n, s in found if " by " not in n and (n.endswith("mean") or not n.startswith(FIXED))]
    rows = [
        f"| {_cell(name)} | {value} | {interval} | {score['count']:,} |"
        for name, score in short[:_MOST_SCORES]
        for value, interval in [in_words(name, score)]
    ]
    head = "| score | value | 95 % interval | count |\n|---|---|---|---|"
    where = f"Measured at step {evaluation.get('step')}; `evaluation.json` has all numbers, and what each counts."
    return "\n".join([head, *rows, "", where])


def _data(experiment: Experiment) -> str:
    rows = [_row("training", name, source) for name, source in experiment.data.sources.items()]
    rows += [_row("held out", name, source) for name, source in experiment.eval.sources.items()]
    return "\n".join(["| part | source | data | terms |", "|---|---|---|---|", *rows])


def _row(part: str, name: str, source: SourceConfig) -> str:
    terms = licence_of(source.kind, source.name)
    return f"| {part} | {_cell(name)} ({source.kind}) | {_cell(terms.data)} | {_cell(terms.terms)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
