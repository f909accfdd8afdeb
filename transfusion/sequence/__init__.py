"""The language of documents: segments become runs of tokens of streams, and rows of them are packed.

Read in this order: `spec` (streams, segments, the layout table), `layouts` (the tables of published systems), `rows`
(a document to tokens, tokens to a packed row), `batch` (the arrays of a packed batch), `masks` (which token sees
which), `text` and `spelling` (ids of text, and of codes in the text's vocabulary), `fakes` (random batches for tests).
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
