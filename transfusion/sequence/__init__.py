"""The language of documents: segments become runs of tokens of streams, and rows of them are packed.

Read in this order: `segment` (what a document is), `stream` and `spec` (the two tables of a config: the streams, and
the layout), `content` and `items` (what the tokens of a stream hold, and what follows from it; `code_items` and
`latent_items` are two kinds), `position`, `times` and `spans` (tables of rules that streams and runs name), `layouts`
(the layouts of published systems), `rows` (a document to tokens, tokens to a packed row), `batch` (the arrays of a
packed batch), `wordless` (the same without its words), `masks` (which token sees which), `pairs` (how many pairs of
tokens that makes), `patches` (latents in patches), `text`, `chat` and `spelling` (ids of text, of turns, and of codes
in the text's vocabulary), `chat_template` (the texts of turns from a tokenizer's program), `arrays` (types that name
the axes of arrays), `fakes` (random batches for tests).

The words of this language, each with one meaning:

- A *document* is a list of segments in reading order. A *segment* is one of its parts: a text, an image, a clip, a
  sound. Its *kind* says which, its *role* whether the document reads it ('context'), draws it ('target') or does both.
- A *stream* is a class of tokens that one config entry describes: how they enter the model, leave it, and learn.
- A *run* is the tokens that a segment yields in one stream. The layout table says which runs a segment has; a run may
  have an *opener* and a *closer*, tokens of text before and after it. (A training run is what a workdir holds.)
- The *content* of a stream is what its tokens hold: text, codes, latents, or nothing (learned queries).
- An *item* is what a segment is in a stream that has items: one image, clip or sound, with the one noise level, class
  and vector that all its tokens share.
- The *place* of a token is where its patch or code lies inside its item: (y, x) in an image.
- The *order* of a token is where it stands in the reading order of its row, over all streams.
- The *position* of a token is its rotary coordinates. They come from the document's running *index* (or *counter*) by
  the rule of its run, and may differ from the order: an image can have one index, and its places added to it.
- A *span* is a set of tokens that see each other whatever their order: an item, or a frame of one.
- A *private* token is seen inside its own span only.
- *Spelled* codes are those that are written as ids of the text's own vocabulary, and so are tokens of text.
- A *part* is what the decoder appends to a document at once. (The *parts* of a stream are its embed, head and tables,
  which another stream may share.)

Shape letters: B rows of a batch, N tokens of a stream, M items of a stream, A rotary axes, S sides of an item (1 of a
series, 2 of an image, 3 of a clip), C channels of a latent, E numbers of a patch.
"""

from transfusion.sequence.content import MASKED, TEXT
from transfusion.sequence.segment import Document, Segment
from transfusion.sequence.spec import Run, SequenceSpec
from transfusion.sequence.stream import ConnectorConfig, Released, Stream, TimeConfig

__all__ = [
    "MASKED",
    "TEXT",
    "ConnectorConfig",
    "Document",
    "Released",
    "Run",
    "Segment",
    "SequenceSpec",
    "Stream",
    "TimeConfig",
]
