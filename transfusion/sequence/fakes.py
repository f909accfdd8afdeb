"""Random batches with the shapes of a config's, for tests and for measuring speed."""

import numpy as np

from transfusion.sequence.batch import Batch
from transfusion.sequence.rows import assemble, expand
from transfusion.sequence.segment import Document, Segment
from transfusion.sequence.spec import SequenceSpec


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
    for kind, role, runs in spec.entries:
        contents = {content.source: content for content in reversed([spec.content(run) for run in runs])}
        content = contents.get("value", contents.get("pixels"))
        if not content or not content.sides or (content.left_out and rng.random() < content.left_out):
            continue
        value = content.fake(rng)
        pixels = contents["pixels"].fake(rng) if "pixels" in contents else None
        segments.insert(rng.integers(0, len(segments) + 1), Segment(kind, value, role or "both", pixels=pixels))
    return tuple(segments)
