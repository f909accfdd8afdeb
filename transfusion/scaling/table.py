"""A study as lines that people read on a terminal."""

from collections.abc import Iterator

from transfusion.scaling.figure import HEADINGS, shown
from transfusion.scaling.study import System, between_systems


def study_table(found: dict[str, System]) -> str:
    """The laws, the differences between modalities and systems, and the held-out run."""
    lines = [line for name, system in found.items() for line in _lines(name, system)]
    for pair, modalities in between_systems(found).items():
        lines.append(pair)
        lines += [
            f"  {modality}  {HEADINGS[key]:<24}  {shown(score)}"
            for modality, numbers in modalities.items()
            for key, score in numbers.items()
        ]
    return "\n".join(lines)


def _lines(name: str, system: System) -> Iterator[str]:
    yield f"{name}: {len(system.points)} measurements of {len(system.points.runs)} runs"
    rows = []
    for modality in system.laws:
        numbers = system.numbers(modality)
        rows += [(modality, HEADINGS[key], shown(numbers[key])) for key in HEADINGS if key in numbers]
        spread = system.laws[modality].noise
        rows.append(
            (modality, "left over", f"{spread.runs.std():.2%} by run, {spread.single.std():.2%} by measurement")
        )
        if (score := system.exponents[modality]) is not None:
            rows.append((modality, "best size, by parabolas", f"C^{shown(score)}"))
    for pair, numbers in system.differences().items():
        rows += [(pair, HEADINGS[key], shown(numbers[key])) for key in HEADINGS if key in numbers]
    for one in system.predictions:
        words = f"predicted {shown(one.predicted)}, measured {one.measured:.4g}: off by {one.off:+.1%}"
        rows.append((one.modality, f"held-out {system.held_out.runs[0]}", words))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for first, second, third in rows:
        yield f"  {first:<{widths[0]}}  {second:<{widths[1]}}  {third}"
