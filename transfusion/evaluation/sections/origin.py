"""What the numbers of a report come from: a packed row of the training data, the commands, versions and the config."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from transfusion.api import Trained
from transfusion.config import Experiment, to_json
from transfusion.evaluation import page, pictures
from transfusion.evaluation.sections.material import Material
from transfusion.running import provenance


def packed_row(material: Material) -> str:
    """The attention mask of the first packed row, and how full the rows were."""
    with contextlib.closing(_first_batch(material.run, material.experiment)) as batches:
        picture = pictures.mask_picture(next(batches), material.run.spec, 0)
    last = material.metrics[-1] if material.metrics else {}
    shares = {k.removeprefix("packing_"): v for k, v in last.items() if k.startswith("packing_") and v is not None}
    said = "The first row of the training data, documents packed one after another; which token may see which. "
    listed = ", ".join(f"{name} {value:.1%}" for name, value in sorted(shares.items()))
    said += f"Share of slots that hold a token, over the whole training: {listed or 'not logged'}."
    return f"<p>{page.escape(said)}</p>{page.plate(picture, 'attention mask of a packed training row')}"


def origin(material: Material) -> str:
    """The commands, versions, machine and config that the numbers come from."""
    commands = [(row.get("date", ""), row["command"]) for row in provenance.read_commands(material.workdir)]
    parts = []
    if commands:
        lines = "\n".join(f"{page.escape(command)}  # {page.escape(date)}" for date, command in commands)
        parts.append(f"<p>Training</p><pre>{lines}</pre>")
    else:
        parts.append(
            page.absent("The training command was not recorded (commands.jsonl is missing); its config is below.")
        )
    if material.evaluation and material.evaluation.get("command"):
        line = f"{material.evaluation['command']}  # {material.evaluation.get('date', '')}"
        parts.append(f"<p>Evaluation</p><pre>{page.escape(line)}</pre>")
    parts.append(f"<p>This report</p><pre>{page.escape(provenance.command())}  # {provenance.now()}</pre>")
    facts = provenance.versions() | {"code": provenance.code_text()}
    facts |= {k: str(v) for k, v in provenance.machine().items()}
    facts["metrics"] = f"{len(material.metrics)} rows up to step {material.run.step}"
    parts.append(
        page.html_table(("Versions and machine", ""), ([page.escape(k), page.escape(v)] for k, v in facts.items()))
    )
    config = page.escape(to_json(material.experiment))
    parts.append(f"<details><summary>Config</summary><pre>{config}</pre></details>")
    return "".join(parts)


def _first_batch(run: Trained, experiment: Experiment) -> Iterator[Any]:
    """The first batch of training, with no batch made ahead of it."""
    data = dataclasses.replace(experiment.data, prefetch=0)
    with run.task.open_data(dataclasses.replace(experiment, data=data)) as batches:
        yield next(batches)
