"""Turns that keep their cache give the ids of the whole conversation as one prompt, and read only what is new."""

import jax
import numpy as np
import pytest

from transfusion.api import Trained
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.latents import open_codecs
from transfusion.model.config import TransformerConfig
from transfusion.sampling import conversation
from transfusion.sampling.decoder import generate
from transfusion.sequence import Run, Stream, text
from transfusion.sequence.layouts import bagel
from transfusion.tasks import make_task

WORDS = Stream(budget=256, vocabulary=text.VOCABULARY)
IMAGE = dict(embed="linear", attention="block", channels=1, patch=2, grid=(4, 4), budget=32)
DRAWN = dict(head="linear", objective="continuous", time="added")
STREAMS = {
    "bagel": (
        {"text": WORDS, "noised": Stream(**IMAGE, **DRAWN), "clean": Stream(**IMAGE), "semantic": Stream(**IMAGE)},
        bagel(),
    ),
    "written": ({"text": WORDS}, {"text": (Run("text"),)}),
}


def run_of(name):
    streams, layout = STREAMS[name]
    model = TransformerConfig(width=32, layers=2, heads=2, kv_heads=1, head_size=16)
    experiment = Experiment(model=model, streams=streams, layout=layout)
    task = make_task(experiment)
    params = task.template.init(jax.random.key(1))
    head = params["parts"]["text"]["head"]
    head["kernel"] = head["kernel"] * (4 * np.ones(text.VOCABULARY))[None].astype(np.float32)
    return Trained(experiment, task, params, open_codecs(experiment), 0)


SETTINGS = dict(max_tokens=12, temperature=1.0, top_p=1.0)


@pytest.mark.parametrize("name", ["bagel", "written"])
def test_the_ids_are_those_from_scratch(name, monkeypatch):
    run, picture = run_of(name), np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 9
    draws = name != "written"
    read, real = [], conversation.reply

    def reply(task, params, prompt, new, kept, seed, config, *, size, number):
        read.append((len(prompt.segments), len(new)))
        answer, after = real(task, params, prompt, new, kept, seed, config, size=size, number=number)
        (whole,) = generate(task, params, [prompt], seed, config, size=size, first=number)
        assert [part.kind for part in answer] == [part.kind for part in whole]
        for ours, theirs in zip(answer, whole, strict=True):
            if ours.kind == "text":
                np.testing.assert_array_equal(ours.value, theirs.value)
            else:  # computed by other sums: the keys of a prompt in one piece or in several
                np.testing.assert_allclose(ours.value, theirs.value, atol=1e-3)
        return answer, after

    monkeypatch.setattr(conversation, "reply", reply)
    chat = run.chat("Be brief.", seed=3, **SETTINGS, max_images=int(draws), guidance=2.0, steps=2)
    chat.say("Hello!")
    said = [picture] if draws else ["again"]
    chat.say(*said, "What is it?", *said)
    if draws:
        answer = chat.say("Draw it.", draw=True)
        assert any(isinstance(part, np.ndarray) and part.shape == (4, 4, 1) for part in answer)
    chat.say("And now?")
    assert [turn for turn, _ in chat.turns] == ["system"] + ["user", "assistant"] * (3 + draws)
    whole, new = zip(*read, strict=True)
    assert new[0] == whole[0] and all(few < all_of_it / 2 for all_of_it, few in zip(whole[2:], new[2:], strict=True))


def test_a_turn_that_fails_was_not_said():
    run = run_of("written")
    chat = run.chat(**SETTINGS)
    chat.say("a")
    with pytest.raises(UsageError, match="say something"):
        chat.say()
    with pytest.raises(UsageError, match="draws no images|max_images"):
        chat.say("b", draw=True)
    with pytest.raises(UsageError, match="no sampler setting"):
        chat.say("b", temprature=1.0)
    assert [parts for turn, parts in chat.turns if turn == "user"] == [["a"]]
    first, again = (run.chat(seed=seed, **SETTINGS).say("a") for seed in (0, 0))
    assert first == again == chat.turns[1][1]


def test_a_prompt_of_one_turn_needs_no_template_of_its_own():
    """What `chat` makes of its turns is what training makes of a record of them."""
    run = run_of("written")
    prompts = []

    def reply(task, params, prompt, new, kept, seed, config, **more):
        prompts.append(prompt)
        return (), kept

    chat = run.chat("S", **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation, "reply", reply)
        chat.say("a")
        chat.say("b")
    ids = np.concatenate([segment.value for segment in prompts[-1].segments])
    wanted = [*b"S\nUser: a\nAssistant: ", text.EOS, *b"\nUser: b\nAssistant: "]
    assert ids.tolist() == wanted
