"""Scores of a trained run against real images: generation, captioning, feature distance, retrieval."""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from transfusion import storage
from transfusion.api import Trained
from transfusion.codecs.features import VggEmbedding, load_vgg16, pixel_vectors
from transfusion.codecs.pixels import to_float
from transfusion.errors import UsageError
from transfusion.evaluation import judge as judges
from transfusion.evaluation.examples import Examples, class_captions
from transfusion.evaluation.frechet import frechet_score
from transfusion.evaluation.intervals import Score, wilson
from transfusion.evaluation.judge import Judge, JudgeConfig
from transfusion.evaluation.kernel import kernel_score
from transfusion.evaluation.retrieval import RANKS, Embedding, distances, retrieval_scores


@dataclasses.dataclass(frozen=True)
class Generated:
    """Images that a run drew, uint8 [N, H, W, C], and their prompts. `asked` are the labels or gallery indices [N] that
    they should show."""

    images: np.ndarray
    prompts: tuple[str, ...]
    asked: np.ndarray


def normalised(caption: str) -> str:
    """The caption in lower case with single spaces."""
    return " ".join(caption.lower().split())


# --- classes ----------------------------------------------------------------------------------------------------------


def open_judge(
    workdir: pathlib.Path, real: Examples, steps: int = JudgeConfig.steps, shared: pathlib.Path | None = None
) -> Judge:
    """The judge of a workdir.

    If there is none for these sizes yet, one is trained on the real images and kept there.

    Args:
      shared: a folder of judges that several runs use: the judge of these very images is taken from there, and put
        there if this run is the first that needs it.
    """
    height, width, channels = real.images.shape[1:]
    classes = int(real.labels.max()) + 1
    config = JudgeConfig(height, width, channels, classes, steps=steps)
    path = workdir / "judge.safetensors"
    if shared is None:
        return _kept_judge(path, config) or _new_judge(path, real, config)
    told = json.dumps(dataclasses.asdict(config)).encode()
    name = hashlib.sha256(told + real.images.tobytes() + real.labels.tobytes()).hexdigest()[:16]
    storage.make_folder(shared)
    with storage.locked(shared / f"{name}.lock"):  # the others wait, and need not train it
        there = shared / f"{name}.safetensors"
        judge = _kept_judge(there, config) or _new_judge(there, real, config)
    judge.save(path)
    return judge


def _kept_judge(path: pathlib.Path, config: JudgeConfig) -> Judge | None:
    """The judge in a file, unless there is none of this config; a damaged file of our own is made again."""
    try:
        kept = judges.load_judge(path) if path.is_file() else None
    except UsageError:
        return None
    return kept if kept is not None and kept.config == config else None


def _new_judge(path: pathlib.Path, real: Examples, config: JudgeConfig) -> Judge:
    judge = judges.train_judge(to_float(real.images), real.labels, config)
    judge.save(path)
    return judge


def draw_classes(run: Trained, real: Examples, count: int, seed: int, **sampler) -> Generated:
    """Draws `count` images. The prompts are the captions of the classes, in turn."""
    captions = class_captions(real)
    labels = np.array([list(captions)[i % len(captions)] for i in range(count)])
    prompts = tuple(captions[label] for label in labels.tolist())
    return Generated(run.draw(prompts, kind=run.shows, seed=seed, **sampler), prompts, labels)


@dataclasses.dataclass(frozen=True)
class GenerationScores:
    """The share of images recognised as asked, over all images and by prompt, and which images were (bool [N])."""

    all: Score
    by_prompt: dict[str, Score]
    right: np.ndarray


def generation(judge: Judge, drawn: Generated) -> GenerationScores:
    """The share of drawn images that the judge recognises as asked."""
    right = judge.predict(to_float(drawn.images)) == drawn.asked
    by_prompt = {}
    for prompt in dict.fromkeys(drawn.prompts):
        mine = np.array([p == prompt for p in drawn.prompts])
        by_prompt[prompt] = wilson(int(right[mine].sum()), int(mine.sum()))
    return GenerationScores(wilson(int(right.sum()), len(right)), by_prompt, right)


def feature_distances(
    judge: Judge, drawn: Generated, real: Examples, seed: int
) -> tuple[dict[str, Score] | None, dict[str, Score] | None]:
    """The Frechet and the kernel distance in the judge's features, with their floors; None of too few images."""
    if len(drawn.images) < 4 or len(real) < 8:
        return None, None
    features = judge.features(to_float(drawn.images)), judge.features(to_float(real.images))
    return frechet_score(*features, seed), kernel_score(*features, seed)


# --- captions ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Captions:
    """Captions that a run wrote, beside the true ones."""

    score: Score
    rows: tuple[dict, ...]  # {'index', 'reference', 'caption', 'right'}


def captioning(run: Trained, held_out: Examples, count: int, seed: int) -> Captions:
    """Captions the first `count` images greedily.

    A caption is right if it equals the true one but for case and spaces.
    """
    count = min(count, len(held_out))
    written = run.caption(list(held_out.images[:count]), seed=seed)
    rows = tuple(
        {"index": i, "reference": reference, "caption": caption, "right": normalised(caption) == normalised(reference)}
        for i, (reference, caption) in enumerate(zip(held_out.captions, written, strict=False))
    )
    return Captions(wilson(sum(row["right"] for row in rows), count), rows)


# --- names ------------------------------------------------------------------------------------------------------------


def draw_names(run: Trained, examples: Examples, count: int, seed: int, **sampler) -> Generated:
    """Draws images for `count` of the examples' captions, which the seed chooses. `asked` are their indices."""
    chosen = np.random.default_rng(seed).permutation(len(examples))[:count]
    prompts = tuple(examples.captions[i] for i in chosen)
    return Generated(run.draw(prompts, kind=run.shows, seed=seed, **sampler), prompts, chosen)


def embeddings(side: int) -> tuple[dict[str, Embedding], str]:
    """The embeddings by which images are compared, and why VGG features are not among them ('' if they are)."""
    found: dict[str, Embedding] = {"pixels": pixel_vectors}
    if side < 16:
        return found, "VGG features need images of 16 pixels or more"
    try:
        found["vgg"] = VggEmbedding(load_vgg16())
    except UsageError as error:
        return found, str(error)
    return found, ""


def retrieval_by_group(
    groups: dict[str, Generated], gallery: np.ndarray, embed: dict[str, Embedding]
) -> dict[str, dict[str, dict[str, Score]]]:
    """{group: {embedding: {'top1', 'top5'}}} of drawn images among the gallery uint8 [M, H, W, C].

    All groups are scored at once, because embedding the gallery takes most of the time.
    """
    images = to_float(np.concatenate([drawn.images for drawn in groups.values()]))
    asked = np.concatenate([drawn.asked for drawn in groups.values()])
    ends = np.cumsum([len(drawn.images) for drawn in groups.values()])
    parts = dict(zip(groups, np.split(np.arange(len(images)), ends[:-1]), strict=True))
    result: dict[str, dict[str, dict[str, Score]]] = {name: {} for name in groups}
    for name, function in embed.items():
        distance = distances(images, to_float(gallery), function)
        for group, rows in parts.items():
            result[group][name] = retrieval_scores(distance[rows], asked[rows])
    return result


def chance(gallery: int) -> dict[str, float]:
    """The scores of a random ranking."""
    return {f"top{k}": min(1.0, k / gallery) for k in RANKS}
