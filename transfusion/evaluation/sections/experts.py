"""Which routed experts the tokens of each modality take."""

import re

from transfusion.evaluation import page
from transfusion.evaluation.sections.material import Material


def experts(material: Material) -> str:
    """A table for each routed feed-forward layer: the share of each stream's tokens that each expert has.

    It is empty for a model without such layers, and then the page is without this section.
    """
    trunks = {"": material.experiment.model}
    trunks |= {f"{name}_": stage.trunk for name, stage in material.experiment.model.stages.items()}
    tables = [
        _table(material, name, where)
        for where, trunk in trunks.items()
        for name, layer in trunk.feed_forwards.items()
        if layer.choices
    ]
    return "".join(tables)


def _table(material: Material, name: str, where: str) -> str:
    loads = last_loads(material.metrics, f"{where}{name}", tuple(material.run.spec.streams))
    if not loads:
        return page.absent(f"{name}: metrics.jsonl has no loads of its experts.")
    count = max(map(len, loads.values()))
    rows = [[page.escape(stream), *(_cell(share, count) for share in shares)] for stream, shares in loads.items()]
    note = (
        f"Share of each stream's tokens in the last logged steps, over all layers, by expert of {name!r}; "
        f"{1 / count:.1%} each would be even. Padding is not counted."
    )
    return page.html_table(("Stream", *map(str, range(count))), rows) + f'<p class="note">{page.escape(note)}</p>'


def _cell(share: float, count: int) -> str:
    """A share as a number on a colour, which is the darker the more it is above an even share."""
    strength = min(share * count / 3, 1.0)
    colour = f"color-mix(in srgb, var(--accent) {60 * strength:.0f}%, transparent)"
    return f'<span style="background: {colour}; padding: 2px 6px">{share:.1%}</span>'


def last_loads(metrics: list[dict], name: str, streams: tuple[str, ...]) -> dict[str, list[float]]:
    """For each stream the share of its tokens that each expert of a layer had, in the last row that says so."""
    found = {}
    for stream in streams:
        of_stream = re.compile(rf"{re.escape(stream)}_{re.escape(name)}_load_(\d+)")
        for row in reversed(metrics):
            shares = {int(m[1]): x for key, x in row.items() if (m := of_stream.fullmatch(key)) and x is not None}
            if shares:
                found[stream] = [shares[i] for i in sorted(shares)]
                break
    return found
