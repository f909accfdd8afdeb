"""Two ways in for images (Janus, JanusFlow): what is drawn is read by a tower before text goes on."""

import jax
import numpy as np
import pytest
from closeness import assert_close, assert_same, drawing_operations

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.model.config import TransformerConfig
from transfusion.model.vit import ViTConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.reference import _forward, generate_one
from transfusion.sequence import TEXT, Segment, SequenceSpec, Stream, text
from transfusion.sequence.rows import assemble, expand
from transfusion.tasks import SequenceTask

SIDES = (4, 6)


def make_task(drawn: str = "image") -> SequenceTask:
    """Images of 4 x 6 in patches of 2; `drawn` as in `layouts.janus`."""
    image = Stream(
        embed="convnext", head="convnext", objective="continuous", time="token_coder", channels=1, patch=2, grid=SIDES,
        budget=21, coder_width=6, visible_to=("image",),
    )  # fmt: skip
    seen = Stream(
        embed="vit", head="none", objective="none", source="pixels", channels=1, patch=2, grid=SIDES, budget=18,
    )  # fmt: skip
    streams = {"text": Stream(vocabulary=text.VOCABULARY, budget=64), "semantic": seen}
    streams |= {"image": image} if drawn else {}
    tower = ViTConfig(width=8, ffn=16, layers=1, heads=2, patch=2, channels=1, grid=(2, 3), pool=False)
    model = TransformerConfig(width=32, layers=2, heads=2, ffn_multiple=16, towers={"semantic": tower})
    spec = SequenceSpec(streams, layouts.janus(drawn), text.BOS, text.EOS)
    return SequenceTask(model, spec, ObjectivesConfig())


@pytest.fixture(scope="module")
def trained():
    """A task, and random weights under which BOI is likely, EOS is not, and the velocity is not zero."""
    task = make_task()
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        is_norm = "norm" in path[-1].key
        return 1 + noise / 5 if is_norm else noise * (leaf.shape[-2] if leaf.ndim > 1 else 25) ** -0.5

    params = jax.tree_util.tree_map_with_path(draw, task.template.shapes)
    params["parts"]["text"]["head"]["kernel"][:, text.BOI] *= 20
    return task, params


def ids(*values):
    return Segment("text", np.array(values, np.int32))


def picture(seed, role="context"):
    value = np.random.default_rng(seed).standard_normal((*SIDES, 1)).astype(np.float32)
    return Segment("image", value, role)


PROMPTS = [
    Prompt((ids(5, 6, 7),), draw=True),
    Prompt((picture(0), ids(70, 71)), draw=True),
    Prompt((ids(1, 2, 3), picture(1))),
]
CONFIG = SamplerConfig(steps=2, max_tokens=4, max_images=2, guidance=2.0, image_guidance=1.5)


@pytest.mark.slow
def test_equals_the_plain_decoder(trained):
    results = generate(*trained, PROMPTS, 3, CONFIG)
    kinds = [[segment.kind for segment in result] for result in results]
    assert any(result[-2:] == ["image", "text"] for result in kinds)  # what follows a drawing is compared too
    assert sum(result.count("image") for result in kinds) > 2  # and one that nobody asked for
    for number, (prompt, result) in enumerate(zip(PROMPTS, results, strict=True)):
        plain = generate_one(*trained, prompt, 3, CONFIG, number)
        assert_same(result, plain, drawing_operations(trained[0], CONFIG))


def test_text_after_a_drawing_is_trained_as_it_is_sampled(trained):
    """It sees what was drawn through the tower alone, where an image of a prompt would stand, whatever the noise."""
    task, params = trained

    def logits(role, time):
        part = expand((ids(1, 2), picture(5, role), ids(3, 4)), task.spec, end=False)
        batch = assemble([[part]], task.spec)
        times = {n: np.full_like(s.time_low, time) for n, s in batch.items() if s.time_low is not None}
        return _forward(task, params, batch, times)[TEXT][0, : part.cost[TEXT]], part

    (both, part), (noisier, _), (read, other) = logits("both", 0.9), logits("both", 0.2), logits("context", 1.0)
    np.testing.assert_array_equal(both, noisier)
    assert_close(both, read, drawing_operations(task))
    assert part.cost == other.cost | {"image": 7}
    tokens, wanted = (p.pieces[TEXT]["tokens"].tolist() for p in (part, other))
    assert tokens == wanted == [text.BOS, 1, 2, text.BOI, text.EOI, 3, 4]
    # Only before a drawing is the opener a target.
    opens = [(p.pieces[TEXT]["targets"] == text.BOI).sum() for p in (part, other)]
    assert opens == [1, 0]
    assert part.pieces["image"]["position"][:, 0].tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert part.pieces["semantic"]["position"][:, 0].tolist() == [4, 5, 6, 7, 8, 9]
    assert part.pieces[TEXT]["position"][:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12]


def test_understanding_alone_captions_and_says_that_it_does_not_draw():
    task = make_task("")
    params = task.template.init(jax.random.key(0))
    assert set(task.spec.streams) == {"text", "semantic"}
    config = SamplerConfig(temperature=0.0, max_tokens=3)
    images = [Prompt((picture(seed),)) for seed in (0, 1)]
    for result in generate(task, params, images, 0, config):
        assert all(segment.kind == "text" for segment in result)
    with pytest.raises(UsageError, match="draws no images") as error:
        generate(task, params, [Prompt((ids(1),), draw=True)], 0, config)
    assert "\n" not in str(error.value)
