"""The writer of text adds a token per step: it chooses the next id, and decides what the row does after it.

Shape letters: B rows, V vocabulary.
"""

import dataclasses
from functools import cached_property, reduce

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.unified import UnifiedModel
from transfusion.sampling.choose import NEVER, emittable
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.parts import token_of_text
from transfusion.sampling.place import lay
from transfusion.sampling.settings import Limits, Settings
from transfusion.sampling.state import DRAWING, FINISHED, WRITING, State, append, of_kind, put_ids, text_keys
from transfusion.sequence import TEXT, SequenceSpec
from transfusion.sequence.rows import Expanded


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """Writes the text of all rows.

    Attributes:
      spec: the tables of the model.
      limits: the limits of the config.
      drawables: the kinds that openers open; other openers are not written.
    """

    spec: SequenceSpec
    limits: Limits
    drawables: tuple[Drawable, ...]

    @property
    def openers(self) -> tuple[int, ...]:
        """The ids that begin a drawing, of each kind."""
        return tuple(drawn.opener for drawn in self.drawables)

    @cached_property
    def allowed(self) -> np.ndarray:
        return emittable(self.spec, self.openers)

    @cached_property
    def token(self) -> Expanded:
        return token_of_text(self.spec)

    def write(self, model: UnifiedModel, state: State, keys: jax.Array, settings: Settings) -> State:
        """Writes one token of text in each row that is writing."""
        rows = state.mode == WRITING
        content = {TEXT: state.pending[:, None]}
        inputs = lay(self.token, self.spec, state.line.place, rows, content, jnp.ones(len(rows)))
        line, encoded = append(model, state.line, self.token, inputs, rows)
        opened = rows & self._opens(state.pending)
        state = dataclasses.replace(state, line=line, mode=jnp.where(opened, DRAWING + state.kind, state.mode))
        return self.put_next(state, model.head(TEXT, encoded[TEXT])[:, 0], rows & ~opened, keys, settings)

    def put_next(self, state: State, logits: jax.Array, rows: jax.Array, keys: jax.Array, settings: Settings) -> State:
        """Chooses the next id of the rows bool [B] from logits [B, V], and puts it out.

        Rows that have written all tokens they may write end, or draw if an image must come.
        """
        thinks = rows & state.thinks
        limit = jnp.where(thinks, settings.think, settings.max_tokens)
        must = self.must_draw(state, rows, settings)
        rows_left = rows & (state.written < limit)
        logits = self._masked(state, logits)
        ids = self.limits.text.choose(logits, text_keys(keys, state.count), settings.temperature, settings.top_p)
        going = rows_left & (ids != self.spec.eos)
        if self.openers:  # whatever a text before an item that must come ends with, that item is drawn
            ends = thinks & (~going | self._opens(ids)) | must
            ids = jnp.where(ends, of_kind(self.openers, state.kind), ids)
        going |= thinks | must
        opens = going & self._opens(ids)
        kind = jnp.where(opens, self._kind(ids), state.kind)
        written = jnp.where(thinks & opens, 0, state.written + (going & ~opens))
        full = (written >= limit) & ~thinks  # the image that must come sees the last token: it has to be encoded first
        mode = jnp.where(~going | full & ~opens, FINISHED, jnp.where(opens, self._mode_behind_opener(kind), WRITING))
        return dataclasses.replace(
            put_ids(state, ids, going),
            mode=jnp.where(rows, mode, state.mode),
            kind=kind,
            written=written,
            thinks=state.thinks & ~opens,
            pending=jnp.where(going, ids, state.pending),
        )

    def _opens(self, ids: jax.Array) -> jax.Array:
        """Finds the ids int32 [B] that begin a drawing, bool [B]."""
        return reduce(jnp.logical_or, (ids == opener for opener in self.openers), jnp.zeros(ids.shape, bool))

    def _kind(self, ids: jax.Array) -> jax.Array:
        """The numbers of the kinds that the ids int32 [B] open; 0 where they open none."""
        return sum((number * (ids == opener) for number, opener in enumerate(self.openers)), jnp.zeros_like(ids))

    def _masked(self, state: State, logits: jax.Array) -> jax.Array:
        """Sets the logits [B, V] of ids that may not be written to `NEVER`."""
        logits = jnp.where(self.allowed, logits, NEVER)
        may = state.drawn < self.limits.images
        for opener in self.openers:
            logits = logits.at[:, opener].set(jnp.where(may, logits[:, opener], NEVER))
        return logits

    def _mode_behind_opener(self, kind: jax.Array) -> jax.Array:
        """The mode after an opener of a kind int32 [B] was chosen: one that is text is first written like any other
        token."""
        if not self.drawables:
            return jnp.int32(WRITING)
        numbered = enumerate(self.drawables)
        return of_kind([WRITING if drawn.opener_is_text else DRAWING + number for number, drawn in numbered], kind)

    def must_draw(self, state: State, rows: jax.Array, settings: Settings) -> jax.Array:
        """Finds those of the rows bool [B] that have drawn, but fewer images than must come."""
        return rows & (state.drawn > 0) & (state.drawn < jnp.minimum(settings.min_images, self.limits.images))

    def stop(self, state: State, rows: jax.Array, settings: Settings) -> tuple[State, jax.Array]:
        """Finishes the rows bool [B] after a drawing; returns the state, and those rows bool [B] that may go on."""
        more = (rows & (state.written < settings.max_tokens)) | self.must_draw(state, rows, settings)
        return dataclasses.replace(state, mode=jnp.where(rows, FINISHED, state.mode)), more
