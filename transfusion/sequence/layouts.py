"""The layout tables of published systems: how a segment of a document becomes runs of tokens."""

import dataclasses

from transfusion.sequence import text
from transfusion.sequence.spec import Run
from transfusion.sequence.spelling import SIZE_CHARACTERS, Grid, Spelling

Table = dict[str, tuple[Run, ...]]  # a layout table, see `transfusion.sequence.SequenceSpec`


def transfusion(cap: float = 0.5, position: str = "advance", kind: str = "image") -> Table:
    """Transfusion (arXiv 2408.11039): one noised run per image between BOI and EOI, which lie outside its span.

    Args:
      kind: of the segments, and the name of their stream: 'image', or another medium ('video', 'sound', ...).
      cap: least t of an image that precedes its caption (section 4.3.4: noise steps up to 500 of 1000); 0 is no cap,
        and 1 gives clean ones, which are no target.
      position: rotary rule of the patches, see `transfusion.sequence.Run`; the paper states none beyond RoPE.
    """
    drawn = Run(kind, opener=text.BOI, closer=text.EOI, position=position)
    context = dataclasses.replace(drawn, time_low=cap, loss=cap < 1)
    return {"text": (Run("text"),), kind: (drawn,), f"{kind}/context": (context,)}


def bagel() -> Table:
    """BAGEL (arXiv 2505.14683): an image is noised latents that nothing else sees, clean latents, and a vision tower's
    tokens, each between BOI and EOI inside its span. A span has one rotary index; the noised copy does not move on.

    An image that is only read ('context') has no noised copy; one that is only drawn ('target') nothing else.
    """
    edges = {"opener": text.BOI, "closer": text.EOI, "boundary": "inside"}
    noised = Run("noised", private=True, position="hold", **edges)
    clean = Run("clean", time_low=1.0, position="item", loss=False, **edges)
    seen = Run("semantic", position="item", loss=False, **edges)
    return {
        "text": (Run("text"),),
        "image": (noised, clean, seen),
        "image/context": (clean, seen),
        "image/target": (noised,),
    }


def janus(drawn: str = "image", codes: bool = False) -> Table:
    """Janus (arXiv 2410.13848), JanusFlow (arXiv 2411.07975): what is read is a vision tower's tokens, what is drawn is
    tokens of its own.

    An image that is drawn and read ('both') is drawn first and then read by the tower, as the decoder reads what it has
    drawn: one BOI is followed by the drawn tokens, which do not move the rotary index, and by the tower's. That nothing
    else sees the drawn tokens is said by their stream (`visible_to` itself): they are causal, and have no span.

    Args:
      drawn: the stream that draws; '' for understanding alone.
      codes: what is drawn is codes: BOI is one of their tokens, and comes again before those of the tower. What is left
        out of a prompt (`text.UNSEEN`) is nothing to be learned.
    """
    read = Run("semantic", opener=text.BOI, closer=text.EOI, loss=False)
    stays = Run("semantic", closer=text.EOI, loss=False)
    if not drawn:
        return {"text": (Run("text"),), "image": (read,)}
    made = Run(drawn, opener=text.BOI, position="advance_hold")
    both = (made, read if codes else stays)
    words = {"text": (Run("text"),)} | ({"text/context": (Run("text", loss=False),)} if codes else {})
    return words | {"image": both, "image/context": (read,), "image/target": (made,)}


def showo() -> Table:
    """Show-o (arXiv 2408.12528): codes between BOI and EOI, which lie inside their span; those of an image that is only
    read are all known, and no target."""
    image = Run("image", opener=text.BOI, closer=text.EOI, boundary="inside")
    read = dataclasses.replace(image, time_low=1.0, loss=False)
    return {"text": (Run("text"),), "image": (image,), "image/context": (read,)}


def var() -> Table:
    """VAR (arXiv 2404.02905) behind text: the codes of all scales between BOI and EOI. An image has one rotary index;
    its embed says where in it a token is. One that is only read is no target."""
    image = Run("image", opener=text.BOI, closer=text.EOI, position="item")
    read = dataclasses.replace(image, loss=False)
    return {"text": (Run("text"),), "image": (image,), "image/context": (read,)}


def showo2() -> Table:
    """Show-o2 (arXiv 2506.15564): one noised run per image between BOI and EOI, which lie outside its span; an image
    that is only read is clean, and no target."""
    image = Run("image", opener=text.BOI, closer=text.EOI)
    read = Run("image", opener=text.BOI, closer=text.EOI, time_low=1.0, loss=False)
    return {"text": (Run("text"),), "image": (image,), "image/context": (read,)}


def world() -> Table:
    """Frames one after the other (a world model): each is noised latents that nothing else sees, then clean latents, so
    that every frame is drawn from clean ones. As `bagel` without its tower; a frame has one index in time, its patches
    their (y, x) too. After the EOI of a clean frame the model opens the next, or writes.
    """
    edges = {"opener": text.BOI, "closer": text.EOI, "boundary": "inside"}
    noised = Run("noised", private=True, position="frame_hold", **edges)
    clean = Run("clean", time_low=1.0, position="frame", loss=False, **edges)
    return {
        "text": (Run("text"),),
        "image": (noised, clean),
        "image/context": (clean,),
        "image/target": (noised,),
    }


def mogao() -> Table:
    """Mogao (arXiv 2505.05472): as `bagel`, but each token has its place in its image (rotary axes time, y, x), and BOI
    and EOI are causal text round the span.

    They have to be: text may not see clean latents ('text sees the vision tower only'), and would through edges that
    lie inside their span. One BOI is followed by the noised latents, which nothing else sees, and by the clean ones.
    """
    noised = Run("noised", opener=text.BOI, private=True, position="grid_hold")
    stays = Run("clean", closer=text.EOI, time_low=1.0, position="grid", loss=False)
    read = Run("clean", opener=text.BOI, closer=text.EOI, time_low=1.0, position="grid", loss=False)
    seen = Run("semantic", opener=text.BOI, closer=text.EOI, position="grid", loss=False)
    return {
        "text": (Run("text"),),
        "image": (noised, stays, seen),
        "image/context": (read, seen),
        "image/target": (noised,),
    }


def connector(queries: bool = True) -> Table:
    """MetaQueries (arXiv 2504.06256): an image is learned queries behind BOI, which a language model reads as text, and
    then noised latents that nothing else sees. An image that is only read yields nothing.

    Without `queries` the noised latents stand alone behind BOI (Qwen-Image, arXiv 2508.02324).
    """
    if queries:
        drawn = (Run("queries", opener=text.BOI, loss=False), Run("image", closer=text.EOI, private=True))
    else:
        drawn = (Run("image", opener=text.BOI, closer=text.EOI, private=True, position="grid"),)
    return {"text": (Run("text"),), "image": drawn, "image/context": ()}


def omnigen() -> Table:
    """OmniGen (arXiv 2409.11340): what is drawn is noised latents, what is read is clean ones of another embed."""
    edges = {"opener": text.BOI, "closer": text.EOI}
    read = Run("clean", time_low=1.0, loss=False, **edges)
    return {"text": (Run("text"),), "image": (Run("image", **edges),), "image/context": (read,)}


def chameleon(codes: int, grid: Grid, stream: str = "text", kind: str = "image") -> Table:
    """Chameleon (arXiv 2405.09818): an image is its codes between BOI and EOI, ids of the text's own vocabulary, and
    all of it is predicted from left to right.

    Args:
      codes: how many there are; their ids follow the text's.
      grid: the size of an item: (h, w) of an image, (T,) of a sound.
      stream: 'text', or another causal stream with its parts, where codes have an expert of their own (MoT).
      kind: of the segments.
    """
    spelling = Spelling(codes, text.VOCABULARY, (grid,))
    return {"text": (Run("text"),), kind: (Run(stream, opener=text.BOI, closer=text.EOI, spelling=spelling),)}


def emu3(codes: int, grids: tuple[Grid, ...], weight: float = 0.5) -> Table:
    """Emu3 (arXiv 2409.18869, section 2.2): before the codes their size as text, after each row and each frame an end;
    a code weighs less in the loss than a word.

    A clip's size has its number of frames; the original says the seconds and the frames per second instead.
    """
    size = tuple(int(i) for i in text.encode(SIZE_CHARACTERS))
    spelling = Spelling(codes, text.VOCABULARY, grids, weight, size, text.SEP, text.EOL, text.EOF)
    kind = "video" if len(grids[0]) == 3 else "image"
    return {"text": (Run("text"),), kind: (Run("text", opener=text.BOI, closer=text.EOI, spelling=spelling),)}


def unitoken(codes: int, grid: Grid) -> Table:
    """UniToken (arXiv 2504.04423): what is read of an image is its codes and then, after a separator, a vision tower's
    tokens of it, which are no targets; what is drawn is the codes alone."""
    (drawn,) = chameleon(codes, grid)["image"]
    first, seen = dataclasses.replace(drawn, closer=-1), Run("semantic", opener=text.SEP, closer=text.EOI, loss=False)
    return {"text": (Run("text"),), "image": (first, seen), "image/target": (drawn,)}
