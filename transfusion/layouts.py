"""The layout tables of published systems: how a segment of a document becomes runs of tokens."""

from transfusion.codecs import text
from transfusion.sequence import Run

Layout = dict[str, tuple[Run, ...]]


def transfusion(cap: float = 0.5, position: str = "advance") -> Layout:
    """Transfusion (arXiv 2408.11039): one noised run per image between BOI and EOI, which lie outside its span.

    Args:
      cap: least t of an image that precedes its caption (section 4.3.4: noise steps up to 500 of 1000); 0 is no cap.
      position: rotary rule of the patches, see `transfusion.sequence.Run`; the paper states none beyond RoPE.
    """
    image = Run("image", opener=text.BOI, closer=text.EOI, position=position)
    context = Run("image", opener=text.BOI, closer=text.EOI, position=position, time_low=cap)
    return {"text": (Run("text"),), "image": (image,), "image/context": (context,)}
