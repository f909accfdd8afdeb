"""Documents in chosen rows, with the random numbers of each of their images given explicitly."""

import numpy as np

from transfusion.sequence.rows import assemble, expand


def noise_of(documents, streams=("image",), seed=0):
    """Per document {stream: times [images]} and {stream: noise [images, 4, 4]}: the same wherever it is packed."""
    result = []
    for number, document in enumerate(documents):
        rng = np.random.default_rng([seed, number])
        images = sum(segment.kind == "image" for segment in document)
        times = {stream: rng.uniform(0.05, 0.95, images) for stream in streams}
        noise = {stream: rng.standard_normal((images, 4, 4)) for stream in streams}
        result.append((times, noise))
    return result


def pack(rows, documents, draws, spec):
    """`rows` lists the documents' numbers per row -> (batch, draws) for `SequenceTask.loss`."""
    batch = assemble([[expand(documents[d], spec) for d in row] for row in rows], spec)
    packed = {name: {} for name in spec.streams}
    for name in draws[0][0]:
        part = batch[name]
        # What does not belong to a document is random too: it must not matter.
        rng = np.random.default_rng(99)
        time = rng.uniform(0, 1, part.time_low.shape).astype(np.float32)
        noise = rng.standard_normal(part.values.shape).astype(np.float32)
        for r, row in enumerate(rows):
            first = 0
            for place, d in enumerate(row, start=1):
                times, noises = draws[d]
                time[r, first : first + len(times[name])] = times[name]
                noise[r, part.document[r] == place] = noises[name].reshape(-1, 4)
                first += len(times[name])
        packed[name] = {"time": time, "noise": noise}
    return batch, packed
