"""Images written id by id: their grammar, and the compiled decoder against the plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion import layouts
from transfusion.errors import UsageError
from transfusion.model.config import TransformerConfig
from transfusion.objectives import ObjectivesConfig
from transfusion.sampling.choose import emittable
from transfusion.sampling.config import SamplerConfig
from transfusion.sampling.decoder import Prompt, generate
from transfusion.sampling.drawable import drawables_of
from transfusion.sampling.grammar import OPENED, OUTSIDE, grammar_of
from transfusion.sampling.guidance import Guidance
from transfusion.sampling.parts import spelled_grids, spelled_parts
from transfusion.sampling.reference import generate_one
from transfusion.sampling.trajectory import trajectory
from transfusion.sequence import TEXT, Segment, SequenceSpec, Stream, text
from transfusion.tasks import SequenceTask

CODES, VOCABULARY = 6, text.VOCABULARY + 8
GRIDS = ((2, 2), (2, 1), (12, 1))


def make_task(name: str) -> SequenceTask:
    streams = {"text": Stream(vocabulary=VOCABULARY, budget=96)}
    layout = layouts.emu3(CODES, GRIDS)
    if name == "mixture":
        streams["text"] = dataclasses.replace(streams["text"], expert="text")
        streams["codes"] = Stream(vocabulary=VOCABULARY, parts="text", expert="image", budget=24)
        layout = layouts.chameleon(CODES, (2, 3), "codes")
    spec = SequenceSpec(streams, layout, text.BOS, text.EOS, words=256)
    return SequenceTask(TransformerConfig(width=16, layers=1, heads=2, qk_norm="rms"), spec, ObjectivesConfig())


def make_params(task: SequenceTask):
    """Random weights under which BOI is likely and EOS unlikely."""
    params = task.template.init(jax.random.key(1))
    head = params["parts"]["text"]["head"]
    head["kernel"] = 2 * head["kernel"] * jnp.ones(VOCABULARY).at[text.BOI].set(4.0)[None]
    return params


def ids(*values: int) -> Segment:
    return Segment("text", np.array(values, np.int32))


def prompts(task: SequenceTask, negative=()) -> list[Prompt]:
    rng = np.random.default_rng(0)
    first = Segment("image", rng.integers(0, CODES, task.spec.spelling.grids[0], np.int32), "context")
    written = [
        Prompt((ids(5, 6, 7),), draw=True),
        Prompt((ids(1, 2, 3, 4, 5, 6, 7, 8, 9),)),
        Prompt((first, ids(70)), draw=True),
        Prompt((ids(9), first)),
    ]
    return [dataclasses.replace(prompt, negative=negative) for prompt in written]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_any_ids_that_the_grammar_allows_can_be_parsed(seed):
    run, rng = layouts.emu3(CODES, GRIDS)["image"][0], np.random.default_rng(seed)
    grammar, state, written = grammar_of(run, GRIDS, VOCABULARY), OPENED, []
    while state != OUTSIDE:
        allowed = np.flatnonzero(grammar.following[state][grammar.classes] >= 0)
        written.append(int(rng.choice(allowed)))
        state = int(grammar.following[state, grammar.classes[written[-1]]])
    assert written[-1] == run.closer and len(written) <= grammar.longest
    assert run.spelling.parse(written[:-1]).shape in GRIDS


def test_what_is_inside_an_image_is_never_text():
    spec = make_task("emu3").spec
    assert set(np.flatnonzero(emittable(spec, (text.BOI,)))) == {*range(256), text.EOS, text.BOI}


GUIDED = {"guidance": 2.0, "image_guidance": 1.3, "image_against": "nothing", "code_top_k": 3, "code_temperature": 0.8}


@pytest.mark.parametrize(
    ("name", "negative", "changes"),
    [("emu3", (ids(40, 41),), GUIDED), ("mixture", (), {"code_top_p": 0.8, "min_images": 2})],
)
def test_equals_the_plain_decoder(name, negative, changes):
    task = make_task(name)
    params, asked = make_params(task), prompts(task, negative)
    config = SamplerConfig(max_tokens=7, max_images=2, **changes)
    results = generate(task, params, asked, 3, config)
    kinds = [segment.kind for result in results for segment in result]
    assert kinds.count("image") >= 4 and kinds.count("text") >= 4
    if name == "emu3":  # the model has chosen among the sizes
        assert len({segment.value.shape for result in results for segment in result if segment.kind == "image"}) > 1
    for number, (prompt, result) in enumerate(zip(asked, results, strict=True)):
        plain = generate_one(task, params, prompt, 3, config, number)
        assert [s.kind for s in result] == [s.kind for s in plain]
        for one, other in zip(result, plain, strict=True):
            assert one.value.dtype == np.int32
            np.testing.assert_array_equal(one.value, other.value)


def test_the_scales_of_text_and_images_add_up():
    c, u, w = (jnp.full((1, 2), x) for x in (5.0, 3.0, 2.0))
    nested = Guidance(jnp.float32(3), jnp.float32(0), jnp.float32(1), (jnp.float32(1.5),))
    assert_close(nested.of_logits([c, u, w]), 2 + 1.5 * (3 + 3 * 2 - 2), 8)
    apart = dataclasses.replace(nested, against="nothing")
    assert_close(apart.of_logits([c, u, w]), 2 + 1.5 * (3 - 2) + 3 * (5 - 3), 8)
    assert_close(apart.of_logits([c, u]), 3 + 3 * 2, 8)
    assert_close(apart.of_logits([c]), c, 8)


def test_what_cannot_be_drawn_is_told():
    task = make_task("emu3")
    (drawn,) = drawables_of(task.spec)
    assert spelled_grids(drawn, (12, 1)) == ((12, 1),) and spelled_grids(drawn, (0, 0)) == GRIDS
    with pytest.raises(UsageError, match=r"no image of \(4, 4\) codes: the sizes are \(2, 2\), \(2, 1\)"):
        spelled_grids(drawn, (4, 4))
    with pytest.raises(UsageError, match="no trajectory"):
        trajectory(task, {}, prompts(task)[0], 0, SamplerConfig())
    with pytest.raises(UsageError, match="nothing says which of the sizes"):
        grammar_of(layouts.chameleon(CODES, (2, 2))["image"][0], ((2, 2), (2, 1)), VOCABULARY)
    own = Stream(embed="vit", head="none", objective="none", source="pixels", channels=1, grid=(2, 2), budget=8)
    spec = SequenceSpec(task.spec.streams | {"semantic": own}, layouts.unitoken(CODES, (2, 2)), text.BOS, text.EOS)
    with pytest.raises(UsageError, match="sampling.max_tokens=0"):
        spelled_parts(spec, *drawables_of(spec), (0, 0), True)
    assert TEXT in spec.streams
