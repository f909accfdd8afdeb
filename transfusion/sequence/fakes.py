"""Random batches with the shapes of a config's, for tests and for measuring speed."""

import numpy as np

from transfusion.sequence.batch import Batch
from transfusion.sequence.rows import assemble, expand
from transfusion.sequence.spec import Document, Segment, SequenceSpec, Stream
from transfusion.sequence.spelling import Spelling


def fake_batch(spec: SequenceSpec, rows: int, seed: int = 0) -> Batch:
    """A batch of random documents with the shapes of `batch_spec`, every stream in use; for tests."""
    rng = np.random.default_rng(seed)
    rows_of_documents = []
    for _ in range(rows):
        row, left = [], dict(spec.budgets)
        for _ in range(64):
            expanded = expand(_fake_document(spec, rng), spec)
            if any(count > left[name] for name, count in expanded.cost.items()):
                break
            left = {name: count - expanded.cost.get(name, 0) for name, count in left.items()}
            row.append(expanded)
        rows_of_documents.append(row)
    return assemble(rows_of_documents, spec)


def _fake_document(spec: SequenceSpec, rng: np.random.Generator) -> Document:
    segments = [Segment("text", rng.integers(0, min(spec.bos, 256), rng.integers(1, 9)).astype(np.int32))]
    for key, runs in spec.layout.items():
        kind, _, role = key.partition("/")
        if not runs:  # segments of this kind yield no tokens
            continue
        stream = next(s for s in (spec.streams[run.stream] for run in runs) if s.source != "none")
        spelling = next((run.spelling for run in runs if run.spelling.codes), None)
        if not spelling and (not stream.media or rng.random() < 0.3):
            continue
        value = _fake_codes(spelling, rng) if spelling else _fake_item(stream, rng)
        seen = [spec.streams[run.stream] for run in runs if spec.streams[run.stream].source == "pixels"]
        pixels = _fake_item(seen[0], rng) if seen else None
        segments.insert(rng.integers(0, len(segments) + 1), Segment(kind, value, role or "both", pixels=pixels))
    return tuple(segments)


def _fake_codes(spelling: Spelling, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, spelling.codes, spelling.grids[rng.integers(len(spelling.grids))], np.int32)


def _fake_item(stream: Stream, rng: np.random.Generator) -> np.ndarray:
    if stream.codes:
        return rng.integers(0, stream.vocabulary, stream.item_shape(), np.int32)
    first, *rest = stream.patch_sides
    sides = stream.grid if stream.aligned else (2 * first, *rest)
    return rng.standard_normal((*sides, stream.channels), np.float32)
