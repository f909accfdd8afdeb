"""What telemetry saw inside the model: gradients of each modality, and the growth of the trunk, by layer."""

import itertools
import re
from collections.abc import Iterator

from transfusion.evaluation import page
from transfusion.evaluation.charts import Line, line_chart
from transfusion.evaluation.sections.material import Material
from transfusion.training.telemetry import PREFIX

MOMENTS = 4  # of the training that a chart shows
# What begins a name: the chart's title, its axis, and whether the axis is logarithmic.
CHARTS = {
    "gradient_cosine": ("Cosine of the gradients of {}", "cosine", False),
    "gradient_norm": ("Norm of the gradient of {}", "norm", True),
    "output": ("Size of the outputs of {}", "root mean square", True),
    "query": ("Length of the queries of {}", "root mean square", True),
    "key": ("Length of the keys of {}", "root mean square", True),
    "load": ("Share of the busiest expert of {}, times their number", "1 is even", False),
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
    charts = "".join(_charts([rows[moment] for moment in moments]))
    return f'<div class="charts">{charts}</div><p class="note">{page.escape(NOTE)}</p>'


def _charts(rows: list[dict]) -> Iterator[str]:
    names = [name.removeprefix(PREFIX) for name in rows[-1] if name.startswith(PREFIX)]
    vectors = [m.groups() for name in names if (m := re.fullmatch(r"(.+)_(\d+)", name))]
    for (kind, (title, label, log)), (name, layers) in itertools.product(CHARTS.items(), _sizes(vectors).items()):
        if not name.startswith(f"{kind}_"):
            continue
        lines = [
            Line(
                f"step {row['step']}", range(layers), [row.get(f"{PREFIX}{name}_{i}") for i in range(layers)], colour=i
            )
            for i, row in enumerate(rows)
        ]
        of = " and ".join(name.removeprefix(f"{kind}_").split("_"))
        yield line_chart(title.format(of), lines, "layer", label, log=log)


def _sizes(vectors: list[tuple[str, str]]) -> dict[str, int]:
    """How many layers each name has."""
    sizes: dict[str, int] = {}
    for name, layer in vectors:
        sizes[name] = max(sizes.get(name, 0), int(layer) + 1)
    return sizes
