"""A conversation with a trained model, turn by turn.

chat = run.chat("You draw what you are asked for.")
chat.say("A handwritten seven, please.")      # the texts and images of the answer
chat.say(image, "What is this?")               # several parts of a turn, in reading order
chat.say("Draw it mirrored.", draw=True)       # the answer is an image
chat.say("Now say it.", kind="sound")          # of a model that draws several kinds
"""

from typing import Any, Protocol

import numpy as np

from transfusion.api.prompts import Part, as_prompts, checked_kind, checked_size, yes_or_no
from transfusion.errors import UsageError
from transfusion.latents import Codecs
from transfusion.model.parameters import Params
from transfusion.sampling import conversation
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.conversation import Kept
from transfusion.sampling.prompts import Prompt
from transfusion.sequence import TEXT, Document, Segment
from transfusion.tasks import SequenceTask


class Speaker(Protocol):
    """What a conversation needs of a run: see `transfusion.api.run.Trained`."""

    task: SequenceTask
    params: Params
    codecs: Codecs

    def sampler(self, **overrides: Any) -> SamplerConfig: ...

    def segments(self, part: Part) -> Document: ...

    def pixels(self, medium: np.ndarray) -> np.ndarray | None: ...


class Chat:
    """A conversation. The model reads what is new in a turn only; what it has read before stays in its cache.

    Attributes:
      turns: what was said so far: pairs of 'system', 'user' or 'assistant', and the parts of the turn.
    """

    def __init__(self, run: Speaker, system: str, seed: int, overrides: dict[str, Any]):
        """`overrides` are fields of `SamplerConfig`.

        Raises:
          UsageError: if the system prompt is no text.
        """
        self._run, self._seed, self._overrides = run, seed, overrides
        run.sampler(**overrides)
        self.turns: list[tuple[str, list[Part]]] = []
        self._document: Document = ()  # all that was said, with the chat template
        self._read = 0  # how many of its segments `_kept` holds
        self._kept: Kept | None = None
        if system:
            if not isinstance(system, str):
                raise UsageError("the system prompt of a chat is a text")
            self.turns.append(("system", [system]))
            self._document = self._turn("system", run.segments(system))

    def _turn(self, turn: str, content: Document) -> Document:
        template = self._run.task.tokenizer.chat
        edges = [Segment(TEXT, ids) for ids in (template.before(turn), template.after(turn))]
        return tuple(segment for segment in (edges[0], *content, edges[1]) if len(segment.value))

    def say(
        self, *parts: Part, draw: bool = False, kind: str = "", size: tuple[int, ...] = (0, 0), **overrides: Any
    ) -> list[str | np.ndarray]:
        """Says something, and returns the texts and uint8 images of the answer, or other media.

        A turn that raises an error was not said.

        Args:
          parts: texts, pictures, clips and sounds, in reading order.
          draw: asks for an image, at once or after a text of up to `think` tokens. Without it the model decides.
          kind: asks for a drawing of this kind; '' is the model's only one.
          size: sides of the latents or codes that are drawn, for models that draw several.
          overrides: fields of `SamplerConfig`, for this turn.

        Raises:
          UsageError: if a part or a setting is not valid, or does not fit the model or the memory.
        """
        if not parts:
            raise UsageError("say something: a text, a picture or several parts")
        run, kind = self._run, checked_kind(kind)
        draw = yes_or_no("draw", draw) or bool(kind)
        (said,) = as_prompts([list(parts)]).prompts
        content = tuple(segment for part in said for segment in run.segments(part))
        sampler = run.sampler(**self._overrides | overrides)
        template = run.task.tokenizer.chat
        opened = (Segment(TEXT, template.before("assistant")),)
        document = (*self._document, *self._turn("user", content), *opened)
        against = run.segments(sampler.negative) if sampler.negative else ()
        answer, kept = conversation.reply(
            run.task, run.params, Prompt(document, draw, against, kind=kind), document[self._read :], self._kept,
            self._seed, sampler, size=checked_size(size), number=len(self.turns),
        )  # fmt: skip
        decode = run.task.tokenizer.decode
        shown = [decode(s.value) if s.kind == TEXT else run.codecs[s.kind].decode(s.value) for s in answer]
        again = tuple(self._as_read(segment, part) for segment, part in zip(answer, shown, strict=True))
        self._kept, self._read = kept, len(document)
        self._document = (*document, *again, Segment(TEXT, template.after("assistant")))
        self.turns += [("user", list(said)), ("assistant", list(shown))]
        return shown

    def _as_read(self, segment: Segment, shown: str | np.ndarray) -> Segment:
        """A segment of an answer as later turns read it."""
        if segment.kind == TEXT:
            return segment
        return Segment(segment.kind, segment.value, "context", pixels=self._run.pixels(shown))
