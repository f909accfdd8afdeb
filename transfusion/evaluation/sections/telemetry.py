"""What telemetry saw inside the model: gradients of each modality, and the growth of the trunk, by layer."""

import itertools
from collections.abc import Iterator

from transfusion.config import Experiment
from transfusion.evaluation import page
from transfusion.evaluation.charts import Line, line_chart
from transfusion.evaluation.sections.material import Material
from transfusion.model.config import TransformerConfig
from transfusion.model.transformer import FIRST
from transfusion.training.telemetry import PREFIX

MOMENTS = 4  # of the training that a chart shows
# What begins a name: the chart's title, its axis, and whether the axis is logarithmic.
CHARTS = {
    "gradient_cosine": ("Cosine of the gradients of {}", "cosine", False),
    "gradient_norm": ("Norm of the gradient of {}", "norm", True),
    "output": ("Size of the outputs of {}", "root mean square", True),
    "query": ("Length of the queries of {}", "root mean square", True),
    "key": ("Length of the keys of {}", "root mean square", True),
    "load": ("The busiest expert of {}", "its share times the number of experts", False),
}
NOTE = (
    "Numbers by layer at a few moments, before the update and before clipping. A cosine of 1 says that two modalities "
    "pull a layer's weights into the same direction, one below 0 that they undo each other."
)


def telemetry(material: Material) -> str:
    """Charts by layer, for each modality or pair of them and each trunk; '' for a run without telemetry."""
    rows = [row for row in material.metrics if any(name.startswith(PREFIX) for name in row)]
    if not rows:
        return ""
    count = len(rows)
    moments = sorted({round(share * (count - 1)) for share in (i / (MOMENTS - 1) for i in range(MOMENTS))})
    charts = "".join(_charts([rows[moment] for moment in moments], _places(material.experiment)))
    return f'<div class="charts">{charts}</div><p class="note">{page.escape(NOTE)}</p>'


def trunks(model: TransformerConfig) -> dict[str, TransformerConfig]:
    """The trunks of a model by their names."""
    return {FIRST: model} | {name: stage.trunk for name, stage in model.stages.items()}


def _places(experiment: Experiment) -> dict[str, str]:
    """What stands in a name behind the kind of its chart, and how the title says it."""
    streams, several = list(experiment.streams), len(experiment.model.stages) > 0
    subjects = {name: name for name in streams}
    subjects |= {f"{a}_{b}": f"{a} and {b}" for a, b in itertools.permutations(streams, 2)}
    layers = {where: trunk.feed_forwards for where, trunk in trunks(experiment.model).items()}
    found = {}
    for where, added in layers.items():
        here = subjects | {f"{layer}_{s}": f"{layer}, tokens of {s}" for layer in added for s in streams}
        found |= {f"{name}_{where}": f"{title} in {where}" if several else title for name, title in here.items()}
    return found


def _charts(rows: list[dict], places: dict[str, str]) -> Iterator[str]:
    for (kind, (title, label, log)), (name, of) in itertools.product(CHARTS.items(), places.items()):
        keys = (f"{PREFIX}{kind}_{name}_{layer}" for layer in itertools.count())
        keys = list(itertools.takewhile(rows[-1].__contains__, keys))
        if keys:
            lines = [
                Line(f"step {row['step']}", range(len(keys)), [row.get(key) for key in keys], colour=i)
                for i, row in enumerate(rows)
            ]
            yield line_chart(title.format(of), lines, "layer", label, log=log)
