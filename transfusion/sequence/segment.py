"""A document is a list of segments in reading order: texts, images, clips, sounds.

Shape letters: see `transfusion.sequence`.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a document.

    Attributes:
      kind: its kind in the layout table: 'text', 'image', 'video', ...
      value: text ids int32 [n], latents float32 [T, C], [h, w, C] or [T, h, w, C], or codes, int32 without C ([n] of
        several scales).
      role: what the document does with it: it is only read ('context'), only drawn ('target') or 'both'.
      label: its class, for class-conditional streams; -1: none.
      pixels: float32 [H, W, C] in [-1, 1], for streams that read the image itself; None: they read `value`.
      dropped: streams whose runs are left out, as if the document had them: what follows keeps its positions (BAGEL's
        condition dropout).
      pooled: float32 [C], for streams with a pooled vector; None: zeros.
      weight: factor of the loss of its tokens, and of the tokens around it; 0: it is not learned.
    """

    kind: str
    value: np.ndarray
    role: str = "both"
    label: int = -1
    pixels: np.ndarray | None = None
    dropped: tuple[str, ...] = ()
    pooled: np.ndarray | None = None
    weight: float = 1.0

    def of(self, source: str) -> np.ndarray:
        """Returns what a stream with this `source` reads."""
        return self.value if source == "value" or self.pixels is None else self.pixels


Document = tuple[Segment, ...]
