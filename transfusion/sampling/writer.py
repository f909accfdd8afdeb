"""The writer of text adds a token per step: it chooses the next id, and decides what the row does after it.

Shape letters: B rows, V vocabulary.
"""

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from transfusion.model.unified import UnifiedModel
from transfusion.sampling.choose import NEVER, emittable
from transfusion.sampling.drawable import Drawable
from transfusion.sampling.parts import token_of_text
from transfusion.sampling.place import lay
from transfusion.sampling.settings import Limits, Settings
from transfusion.sampling.state import DRAWING, FINISHED, WRITING, State, append, put_ids, text_keys
from transfusion.sequence import TEXT, SequenceSpec
from transfusion.sequence.rows import Expanded


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """Writes the text of all rows.

    Attributes:
      spec: the tables of the model.
      limits: the limits of the config.
      drawable: the item that an opener opens; None if nothing is drawn, and no opener written.
    """

    spec: SequenceSpec
    limits: Limits
    drawable: Drawable | None

    @property
    def opener(self) -> int:
        """The id that begins a drawing; -1 if nothing is drawn."""
        return -1 if self.drawable is None else self.drawable.opener

    @cached_property
    def allowed(self) -> np.ndarray:
        return emittable(self.spec, self.opener)

    @cached_property
    def token(self) -> Expanded:
        return token_of_text(self.spec)

    def write(self, model: UnifiedModel, state: State, keys: jax.Array, settings: Settings) -> State:
        """Writes one token of text in each row that is writing."""
        rows = state.mode == WRITING
        content = {TEXT: state.pending[:, None]}
        inputs = lay(self.token, self.spec, state.line.place, rows, content, jnp.ones(len(rows)))
        line, encoded = append(model, state.line, self.token, inputs, rows)
        opened = rows & (state.pending == self.opener)
        state = dataclasses.replace(state, line=line, mode=jnp.where(opened, DRAWING, state.mode))
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
        ids = jnp.where(thinks & ~going | must, self.opener, ids)
        going |= thinks | must
        opens = going & (ids == self.opener)
        written = jnp.where(thinks & opens, 0, state.written + (going & ~opens))
        full = (written >= limit) & ~thinks  # the image that must come sees the last token: it has to be encoded first
        mode = jnp.where(~going | full & ~opens, FINISHED, jnp.where(opens, self._mode_behind_opener, WRITING))
        return dataclasses.replace(
            put_ids(state, ids, going),
            mode=jnp.where(rows, mode, state.mode),
            written=written,
            thinks=state.thinks & ~opens,
            pending=jnp.where(going, ids, state.pending),
        )

    def _masked(self, state: State, logits: jax.Array) -> jax.Array:
        """Sets the logits [B, V] of ids that may not be written to `NEVER`."""
        logits = jnp.where(self.allowed, logits, NEVER)
        if self.drawable is None:
            return logits
        may = state.drawn < self.limits.images
        return logits.at[:, self.opener].set(jnp.where(may, logits[:, self.opener], NEVER))

    @property
    def _mode_behind_opener(self) -> int:
        """The mode after an opener was chosen: one that is text is first written like any other token."""
        return WRITING if self.drawable is None or self.drawable.opener_is_text else DRAWING

    def must_draw(self, state: State, rows: jax.Array, settings: Settings) -> jax.Array:
        """Finds those of the rows bool [B] that have drawn, but fewer images than must come."""
        return rows & (state.drawn > 0) & (state.drawn < jnp.minimum(settings.min_images, self.limits.images))

    def stop(self, state: State, rows: jax.Array, settings: Settings) -> tuple[State, jax.Array]:
        """Finishes the rows bool [B] after a drawing; returns the state, and those rows bool [B] that may go on."""
        more = (rows & (state.written < settings.max_tokens)) | self.must_draw(state, rows, settings)
        return dataclasses.replace(state, mode=jnp.where(rows, FINISHED, state.mode)), more
