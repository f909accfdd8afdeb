"""Does a generated image show what was asked for? Its nearest real images answer, without a classifier.

For each generated image, all M images of the gallery (every image that prompts can ask for) are sorted by distance. The
score is the share of generated images for which the asked image comes first, or among the first five.
"""

from collections.abc import Callable

import numpy as np

from transfusion.codecs.features import pixel_vectors
from transfusion.errors import UsageError
from transfusion.evaluation.intervals import Score, wilson

Embedding = Callable[[np.ndarray], np.ndarray]
RANKS = (1, 5)


def squared_distances(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float32 [N, M], of vectors [N, F] and [M, F]. They are never negative."""
    cross = queries @ gallery.T
    squares = np.square(queries).sum(-1)[:, None] + np.square(gallery).sum(-1)[None]
    return np.maximum(squares - 2 * cross, 0)


def distances(generated: np.ndarray, gallery: np.ndarray, embed: Embedding, chunk: int = 512) -> np.ndarray:
    """Squared distances, float32 [N, M], of embedded images. The gallery is embedded in chunks."""
    queries = embed(generated)
    parts = [squared_distances(queries, embed(gallery[i : i + chunk])) for i in range(0, len(gallery), chunk)]
    return np.concatenate(parts, axis=1)


def ranks(distance: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The rank of the asked gallery image in each row of distances [N, M], int [N]; 1 is the nearest.

    Ties count against the image, and NaN gives the worst rank, so that a constant or broken image cannot score.
    """
    n, m = distance.shape
    own = distance[np.arange(n), asked]
    closer = (distance <= own[:, None]).sum(1)
    return np.where(np.isnan(distance).any(1), m, closer)


def retrieval_scores(distance: np.ndarray, asked: np.ndarray) -> dict[str, Score]:
    """{'top1': score, 'top5': score}, shares with Wilson intervals, of distances [N, M] and asked indices [N]."""
    rank = ranks(distance, asked)
    return {f"top{k}": wilson(int((rank <= k).sum()), len(rank)) for k in RANKS}


def retrieval(
    generated: np.ndarray, asked: np.ndarray, gallery: np.ndarray, embeddings: dict[str, Embedding] | None = None
) -> dict[str, dict[str, Score]]:
    """Nearest-neighbour scores of generated images.

    Args:
      generated: float [N, H, W, C] in [-1, 1].
      asked: int [N], the index of the gallery image that each was asked to show.
      gallery: float [M, H, W, C] in [-1, 1], real images.
      embeddings: functions from images to vectors, by name; by default pixels only. `features.VggEmbedding` is another.

    Returns:
      {name: {'top1': score, 'top5': score}}; a random ranking scores 1 / M and 5 / M.

    Raises:
      UsageError: if shapes or indices do not fit.
    """
    generated, gallery, asked = np.asarray(generated), np.asarray(gallery), np.asarray(asked)
    if generated.ndim != 4 or generated.shape[1:] != gallery.shape[1:] or not len(generated):
        raise UsageError(f"images {list(generated.shape)} and gallery {list(gallery.shape)} differ in size")
    if asked.shape != (len(generated),) or asked.min() < 0 or asked.max() >= len(gallery):
        raise UsageError(f"retrieval needs one index in 0..{len(gallery) - 1} per generated image")
    embeddings = {"pixels": pixel_vectors} if embeddings is None else embeddings
    return {name: retrieval_scores(distances(generated, gallery, embed), asked) for name, embed in embeddings.items()}
