"""How likely a run holds a text behind a prompt, and texts that it writes up to a stop: what evaluation harnesses ask.

Shape letters: B rows, N tokens of text, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.adapters.shapes import fit, prefill
from transfusion.api import Trained
from transfusion.errors import UsageError
from transfusion.model.inputs import Inputs
from transfusion.model.parameters import Params
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.prompts import Prompt, expand_prompt
from transfusion.sequence import TEXT, Document, Segment

ROWS = 16  # documents that are scored, or texts that are written, at a time


def windows(ids: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts a text into parts of at most `most` ids, for models that cannot read it whole: pairs of what is read, and of
    what is predicted behind it, int32 [n] each.

    Each id is predicted once. Behind the first part at least one id is read before, and the last part has as many
    before it as fit, as in lm-eval's rolling windows.
    """
    if most < 2:
        raise UsageError(f"windows of {most} ids: at least 2 are needed")
    yield ids[:0], ids[:most]
    for start in range(most, len(ids), most - 1):
        stop = min(start + most - 1, len(ids))
        yield ids[stop - most : start], ids[start:stop]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Scores texts behind prompts, some at a time, each among others of its length.

    Attributes:
      run: a model that writes text id by id.
      rows: how many are scored at once; fewer are filled up, so that a length is one program.
    """

    run: Trained
    rows: int = ROWS

    def __post_init__(self):
        self.run.check_writes()
        if self.run.answers:
            raise UsageError("this model fills in its text all at once: no text has a likelihood token by token")

    @property
    def most(self) -> int:
        """Ids of text that a document of the training has room for, behind what begins it."""
        return self.run.spec.streams[TEXT].budget - (self.run.spec.bos >= 0)

    def encoded(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a context and of its continuation, int32 [n] each, as those of the whole text.

        Spaces at the end of the context belong to the continuation, where tokenizers expect them.
        """
        encode = self.run.task.tokenizer.encode
        kept = context.rstrip()
        context, continuation = kept, context[len(kept) :] + continuation
        first = encode(context) if context else np.zeros(0, np.int32)
        return first, encode(context + continuation)[len(first) :]

    def text(self, ids: np.ndarray) -> Document:
        """A document of text ids."""
        return (Segment(TEXT, np.asarray(ids, np.int32)),) if len(ids) else ()

    def score(self, pairs: Sequence[tuple[Document, np.ndarray]]) -> list[tuple[float, bool]]:
        """The natural log of the probability of each continuation int32 [n] behind its context, and whether it is what
        the model would write greedily.

        Raises:
          UsageError: if a document does not fit the model, or no text can follow a context.
        """
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)  # of those without ids
        groups: dict[Hashable, list[tuple[int, Prompt, Any]]] = {}
        for number, (context, ids) in enumerate(pairs):
            if len(ids):
                prompt = Prompt((*self._begun(context), Segment(TEXT, np.asarray(ids, np.int32))))
                shape, key = fit(self.run, prompt)
                groups.setdefault(key, []).append((number, prompt, shape))
        for group in groups.values():
            for first in range(0, len(group), self.rows):
                numbers, prompts, shapes = zip(*group[first : first + self.rows], strict=True)
                lengths = [len(prompt.segments[-1].value) for prompt in prompts]
                results_of = self._score(list(prompts), lengths, shapes[0])
                for number, result in zip(numbers, results_of, strict=True):
                    results[number] = result
        return results

    def _begun(self, context: Document) -> Document:
        """The context; where nothing begins a document, an end of one stands before what would be first."""
        if context or self.run.spec.bos >= 0:
            return context
        return (Segment(TEXT, np.array([self.run.spec.eos], np.int32)),)

    def _score(self, prompts: list[Prompt], lengths: list[int], shape: Any) -> list[tuple[float, bool]]:
        pieces = [expand_prompt(prompt.segments, self.run.spec, None).pieces[TEXT] for prompt in prompts]
        for piece, length in zip(pieces, lengths, strict=True):
            before = piece["order"][-length - 1 : -length]
            if not len(before) or before[0] != piece["order"][-length] - 1:
                raise UsageError("no text can follow this context: nothing in it predicts the first token")
        laid = prefill(self.run, prompts + prompts[-1:] * (self.rows - len(prompts)), shape)
        targets = np.zeros(laid.inputs[TEXT].position.shape[:2], np.int32)
        for row, piece in enumerate(pieces):
            targets[row, : len(piece["tokens"]) - 1] = piece["tokens"][1:]
        logs, greedy = map(np.asarray, self._compiled(self.run.params, laid.inputs, targets))
        found = []
        for row, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
            part = np.s_[row, len(piece["tokens"]) - 1 - length : len(piece["tokens"]) - 1]
            found.append((float(logs[part].sum(dtype=np.float64)), bool(greedy[part].all())))
        return found

    @cached_property
    def _compiled(self) -> Callable[[Params, dict[str, Inputs], np.ndarray], tuple[jax.Array, jax.Array]]:
        task = self.run.task

        @jax.jit
        def score(params: Params, inputs: dict[str, Inputs], targets: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The log-probability of each target [B, N], and whether it is the most likely one."""
            model = task.template.bind(params)
            y, kernel = model.head_of(TEXT).factors(model.encode(inputs)[TEXT].hidden)
            kernel = kernel.astype(y.dtype)

            def of_row(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                """Row by row, as the logits of all rows would be rows x N x V numbers."""
                hidden, wanted = row
                logits = jnp.einsum("nd,dv->nv", hidden, kernel, preferred_element_type=jnp.float32)
                chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
                return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == wanted

            return jax.lax.map(of_row, (y, targets))

        return score

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, contexts: Sequence[Document], asked: Sequence["Wanted"]) -> list[str]:
        """Continues contexts with text, each up to its first stop.

        The decoder knows no stops: it writes up to the end of a document or `tokens`, and the text is cut behind.

        Raises:
          UsageError: if a context does not fit the model, or ends where no text can follow.
        """
        results: dict[int, str] = {}
        groups: dict[Hashable, list[int]] = {}
        prompts = [Prompt(self._begun(context)) for context in contexts]
        for number, prompt in enumerate(prompts):
            _, key = fit(self.run, prompt)
            groups.setdefault((asked[number].settings, key), []).append(number)
        for (settings, _), numbers in groups.items():
            sampler: SamplerConfig = self.run.sampler(max_images=0, **dict(settings))
            for first in range(0, len(numbers), self.rows):
                part = numbers[first : first + self.rows]
                filled = part + part[-1:] * (self.rows - len(part))
                chosen = [prompts[i] for i in filled]
                made = self.run.continued(chosen, 0, sampler, numbers=filled, batch=self.rows)
                for number, parts in zip(part, made, strict=False):
                    results[number] = asked[number].cut("".join(one for one in parts if isinstance(one, str)))
        return [results[number] for number in range(len(contexts))]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How a text is written: sampler settings, and the texts before which it ends."""

    settings: tuple[tuple[str, Any], ...]
    until: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """The most tokens that are written."""
        return dict(self.settings)["max_tokens"]

    def cut(self, text: str) -> str:
        """The text up to the first stop."""
        return text[: min((text.find(stop) for stop in self.until if stop and stop in text), default=len(text))]

    @classmethod
    def of(cls, keywords: dict[str, Any], tokens: int) -> "Wanted":
        """Reads the generation keywords of lm-eval and lmms-eval; those of beam search and caches mean nothing here.

        Greedy unless `do_sample` is true or, where it is not said, a temperature is given.
        """
        until = keywords.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        names = ("max_gen_toks", "max_new_tokens", "max_tokens")
        tokens = next((int(keywords[name]) for name in names if keywords.get(name)), tokens)
        warm = float(keywords.get("temperature") or 0.0)
        if not keywords.get("do_sample", warm > 0):
            return cls((("max_tokens", tokens), ("temperature", 0.0)), until)
        settings = {"max_tokens": tokens, "temperature": warm or 1.0}
        settings |= {
            name: kind(keywords[name]) for name, kind in (("top_p", float), ("top_k", int)) if keywords.get(name)
        }
        return cls(tuple(settings.items()), until)


def bits_per_byte(log_probability: float, text: str) -> float:
    """Bits per UTF-8 byte of a text with this natural log of its probability."""
    return -log_probability / (math.log(2) * len(text.encode()))
