"""The shape into which a prompt is laid out. Prompts are only put together with others of one shape, so that neither
the programs that are compiled nor the last bits of a result depend on what a prompt is put together with."""

from collections.abc import Hashable

from transfusion.api import Trained
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.prompts import Fit, Prefill, Prompt, fit_of, prefill_of


def fit(run: Trained, prompt: Prompt, thinks: bool = False) -> tuple[Fit, Hashable]:
    """The shape of one prompt, and a key that prompts share which are laid out alike.

    Raises:
      UsageError: if the prompt does not fit the model.
    """
    found = fit_of([prompt], run.spec, drawables_of(run.spec), thinks)
    prefill_of([prompt], run.spec, drawables_of(run.spec), thinks, found)
    budgets = tuple((name, found.spec.streams[name].budget, found.spec.streams[name].items) for name in found.names)
    kinds = tuple(segment.kind for segment in prompt.segments)
    return found, (prompt.kind, prompt.size, kinds, budgets)


def prefill(run: Trained, prompts: list[Prompt], shape: Fit) -> Prefill:
    """Lays out prompts of one shape."""
    return prefill_of(prompts, run.spec, drawables_of(run.spec), fit=shape)
