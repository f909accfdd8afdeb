"""The record form: each storage gives back what was written, what is wrong is named, losses go where they should."""

import dataclasses
import json
import pathlib
import tempfile

import numpy as np
import public_forms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program import run_program

from transfusion.data import clips, documents, images, sounds
from transfusion.data.config import DataConfig, SourceConfig
from transfusion.data.examples import make_example
from transfusion.data.packing import Bad
from transfusion.data.pipeline import Pipeline
from transfusion.data.record_writer import write_records
from transfusion.data.sources import open_source
from transfusion.errors import UsageError
from transfusion.sequence import Run, SequenceSpec, Stream, text
from transfusion.sequence.rows import expand

LIMIT = 50_000_000
SPEC = SequenceSpec(
    {
        "text": Stream(budget=256, vocabulary=text.VOCABULARY),
        "image": Stream(
            embed="linear", head="linear", objective="continuous", attention="block", budget=64, channels=1, patch=2,
            grid=(4, 4),
        ),
    },
    {"text": (Run("text"),), "image": (Run("image", opener=text.BOI, closer=text.EOI),)},
    text.BOS,
    text.EOS,
)  # fmt: skip

# --- one record in four storages --------------------------------------------------------------------------------------


def media(number):
    """The bytes of a picture, a clip and a sound, by the keys of their segments."""
    clip = np.full((2, 4, 4, 3), number, np.uint8)
    return {
        "image": images.encode_png(np.full((4, 4, 1), number, np.uint8)),
        "clip": clips.encode_clip(clip, ".webp"),
        "sound": sounds.encode_wav(np.arange(8, dtype=np.int16) * number, 8000),
    }


SUFFIX = {"image": ".png", "clip": ".webp", "sound": ".wav"}
stated = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["context", "target", "both"]),
        "turn": st.sampled_from(["system", "user", "assistant"]),
        "loss": st.booleans(),
        "weight": st.sampled_from([0, 0.25, 1, 2.5]),
    },
)
characters = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
content = st.one_of(
    st.tuples(st.just("text"), characters),
    st.tuples(st.just("text"), st.lists(characters, min_size=2, max_size=3)),
    st.tuples(st.sampled_from(list(SUFFIX)), st.integers(0, 255)),
    st.tuples(st.just("codes"), st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=3)),
    st.tuples(st.just("series"), st.lists(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=2), min_size=1)),
)
records = st.lists(st.lists(st.tuples(content, stated), min_size=1, max_size=4), min_size=1, max_size=3)


def as_jsonl(folder, found):
    rows = []
    for r, segments in enumerate(found):
        row = []
        for s, ((form, value), fields) in enumerate(segments):
            if form in SUFFIX:
                name = f"{r}-{s}{SUFFIX[form]}"
                (folder / name).write_bytes(media(value)[form])
                value = name
            row.append({form: value} | fields)
        rows.append({"segments": row})
    return public_forms.jsonl(folder, "records.jsonl", rows)


def as_parquet(folder, found):
    """All columns are in each segment, as Parquet has it; what it lacks is None."""
    names = ["image", "clip", "sound", "codes", "series", "role", "turn", "loss", "weight", "text"]
    rows = []
    for segments in found:
        row = []
        for (form, value), fields in segments:
            value = {"bytes": media(value)[form], "path": None} if form in SUFFIX else value
            value = value if form != "text" or isinstance(value, list) else [value]
            row.append(dict.fromkeys(names) | {form: value} | fields)
        for segment in row:
            segment["weight"] = None if segment["weight"] is None else float(segment["weight"])
        rows.append({"segments": row})
    return public_forms.parquet(folder, "records.parquet", rows)


def as_tar(folder, found):
    members = []
    for r, segments in enumerate(found):
        row = []
        for s, ((form, value), fields) in enumerate(segments):
            if form in SUFFIX:
                members.append((f"{r:04}.{s}{SUFFIX[form]}", media(value)[form]))
                value = f"{s}{SUFFIX[form]}"
            row.append({form: value} | fields)
        members.append((f"{r:04}.json", json.dumps({"segments": row}).encode()))
    return public_forms.tar(folder, "records.tar", members)


def as_array_record(folder, found):
    lost = []
    config = SourceConfig(kind="records", path=as_jsonl(folder, found))
    assert write_records(config, str(folder / "written"), LIMIT, lost.append, shard_bytes=100) == len(found)
    assert not lost
    return str(folder / "written")


STORAGES = [as_jsonl, as_parquet, as_tar, as_array_record]


@settings(max_examples=12, deadline=None)
@given(records)
@pytest.mark.parametrize("store", STORAGES, ids=[store.__name__ for store in STORAGES])
def test_each_storage_gives_back_what_was_written(store, found):
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(SourceConfig(kind="records", path=store(pathlib.Path(folder), found)))
        assert len(source) == len(found)
        for record, segments in zip(source, found, strict=True):
            assert "error" not in record, record["error"]
            for read, ((form, value), fields) in zip(record["segments"], segments, strict=True):
                wanted = {"role": "", "turn": "", "loss": None, "weight": 1.0} | fields
                assert {name: getattr(read, name) for name in wanted} == wanted
                if form == "text":
                    assert read.value == (tuple(value) if isinstance(value, list) else value)
                elif form in SUFFIX:
                    assert (read.value == {"image": value, "clip": value, "sound": np.arange(8) * value}[form]).all()
                else:
                    np.testing.assert_array_equal(read.value, np.array(value, np.float32))
                    assert read.encoded == (form == "codes")


def test_the_storages_make_the_same_batches(tmp_path):
    found = [
        [(("text", f"number {i}"), {}), (("image", i), {}), (("text", "again"), {"loss": False}), (("image", i), {})]
        for i in range(40)
    ]
    batches = []
    for store in STORAGES:
        (tmp_path / store.__name__).mkdir()
        path = store(tmp_path / store.__name__, found)
        config = DataConfig(sources={"a": SourceConfig(kind="records", path=path)}, prefetch=0)
        with Pipeline(config, SPEC, 2) as pipeline:
            batches.append([next(pipeline) for _ in range(4)])
            state = json.loads(json.dumps(pipeline.state()))
            following = next(pipeline)
            assert pipeline.stats()["efficiency"]["image"] > 0.9
        with Pipeline(config, SPEC, 2) as pipeline:  # and go on exactly
            pipeline.restore(state)
            batches[-1].append(following)
            assert_same(next(pipeline), following)
    for other in batches[1:]:
        for ours, theirs in zip(batches[0], other, strict=True):
            assert_same(ours, theirs)


def assert_same(ours, theirs):
    for name in ours:
        for field, value in vars(ours[name]).items():
            np.testing.assert_array_equal(value, vars(theirs[name])[field])


# --- what is wrong ----------------------------------------------------------------------------------------------------

WRONG = [
    ({"segments": [{"imge": "a.png"}]}, "segment 1: unknown field 'imge' (did you mean 'image'?)"),
    ({"segments": [{"text": "a"}, {"text": "b", "image": "a.png"}]}, "segment 2: has text and image, not one of"),
    ({"segments": [{"role": "context"}]}, "segment 1: has nothing, not one of"),
    ({"segments": [{"text": "a", "role": "reader"}]}, "role='reader' is none of context, target, both"),
    ({"segments": [{"text": "a", "turn": "bot"}]}, "turn='bot' is none of system, user, assistant"),
    ({"segments": [{"text": "a", "loss": 1}]}, "loss=1 is not true or false"),
    ({"segments": [{"text": "a", "weight": -1}]}, "weight=-1 is no number from 0 on"),
    ({"segments": [{"text": "a", "kind": "x"}]}, "kind is for codes and series"),
    ({"segments": [{"text": " "}]}, "the text is empty"),
    ({"segments": [{"text": ["a", 3]}]}, "the text is of type int"),
    ({"segments": [{"image": "none.png"}]}, "none.png"),
    ({"segments": [{"image": "../a.png"}]}, "lies outside the folder"),
    ({"segments": [{"image": "https://a.org/b.png"}]}, "is an address: download the file"),
    ({"segments": [{"image": "records.jsonl"}]}, "records.jsonl: not a readable image"),
    ({"segments": [{"image": {"path": "ok.png", "frame": 7}}]}, "1 pictures, and none of the number 7"),
    ({"segments": [{"codes": [[1, 2], [3]]}]}, "its rows differ in length"),
    ({"segments": [{"codes": [-1]}]}, "codes are whole numbers"),
    ({"segments": [{"series": [1.0, 2.0]}]}, "a series has rows of numbers"),
    ({"segments": [{"series": "ok.png"}]}, "ok.png is no .npy file with numbers"),
    ({"segments": [{"series": "huge.npy"}]}, "huge.npy is no .npy file with numbers"),
    ({"segments": []}, "it has no segments"),
    ({"segments": "a"}, "segments is no list"),
    ({"segments": [7]}, "segment 1: is of type int"),
    ({"picture": "a.png"}, "neither segments nor a short form: it has picture"),
    ({"image": "ok.png", "sound": "ok.png"}, "ok.png"),
]


def test_a_wrong_record_is_one_line_with_file_and_number_and_nothing_else_is_lost(tmp_path):
    (tmp_path / "ok.png").write_bytes(public_forms.png(0))
    with open(tmp_path / "huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"shape": (2**40, 2), "fortran_order": False, "descr": "<f4"})
    rows = [row for wrong, _ in WRONG for row in ({"text": "good"}, wrong)]
    path = public_forms.jsonl(tmp_path, "records.jsonl", rows)
    with open(path, "a") as file:
        file.write('{"text": \n\n{"text": "a", "text": "b"}\n{"text": "last"}')
    found = list(open_source(SourceConfig(kind="records", path=path)))
    assert [record["id"] for record in found][: len(rows)] == [f"{path}:{i + 1}" for i in range(len(rows))]
    assert [record["text"] for record in found if "text" in record] == ["good"] * len(WRONG) + ["last"]
    for record, (_, error) in zip(found[1::2], WRONG, strict=False):
        assert error in record["error"] and "\n" not in record["error"]
    assert [found[-3]["error"], found[-2]["error"]] == ["the record is no JSON", "the record names 'text' twice"]
    lost = []
    kept = write_records(SourceConfig(kind="records", path=path), str(tmp_path / "out"), LIMIT, lost.append)
    assert kept == len(WRONG) + 1 and len(lost) == len(WRONG) + 2 and lost[0].startswith(f"{path}:2: segment 1")
    assert len(open_source(SourceConfig(kind="records", path=str(tmp_path / "out")))) == kept
    with pytest.raises(UsageError, match="exists"):
        write_records(SourceConfig(kind="records", path=path), str(tmp_path / "out"), LIMIT, lost.append)


def test_numbers_lie_in_files_too(tmp_path):
    for name, array in (("a", np.arange(6.0).reshape(3, 2)), ("b", np.asfortranarray(np.arange(6).reshape(2, 3)))):
        np.save(tmp_path / f"{name}.npy", array)
    rows = [{"segments": [{"series": "a.npy"}, {"codes": "b.npy"}]}]
    source = open_source(SourceConfig(kind="records", path=public_forms.jsonl(tmp_path, "a.jsonl", rows)))
    series, codes = source[0]["segments"]
    assert series.value.tolist() == [[0, 1], [2, 3], [4, 5]] and series.kind == "series"
    assert codes.value.tolist() == [[0, 1, 2], [3, 4, 5]] and codes.kind == "image" and codes.encoded


def test_a_source_that_cannot_be_read_says_what_to_do(tmp_path):
    def opened(**fields):
        return open_source(SourceConfig(kind="records", **fields))

    (tmp_path / "empty").mkdir()
    for fields, wrong in (
        ({"path": ""}, "path is empty"),
        ({"path": str(tmp_path / "empty")}, "no file of records in"),
        ({"path": str(tmp_path / "none.jsonl")}, "no file matches"),
        ({"path": str(tmp_path), "reader": "lava"}, "llava"),
        ({"path": public_forms.jsonl(tmp_path, "a.jsonl", [{}]), "files": "none"}, "no folder 'none'"),
        ({"path": public_forms.jsonl(tmp_path, "a.doc", [{}])}, "whose names end in .jsonl"),
        ({"path": public_forms.whole(tmp_path, "a.json", {"a": 1})}, "does not have the form that its reader reads"),
        ({"path": public_forms.whole(tmp_path, "b.json", []), "reader": "coco"}, "does not have the form"),
    ):
        with pytest.raises(UsageError, match=wrong):
            opened(**fields)


def test_a_model_refuses_a_kind_that_it_has_no_stream_for(tmp_path):
    path = public_forms.jsonl(tmp_path, "a.jsonl", [{"segments": [{"series": [[1.0]], "kind": "arm"}, {"text": "a"}]}])
    (record,) = open_source(SourceConfig(kind="records", path=path))
    bad = make_example(record, documents.DocumentChoice(), SPEC)
    wrong = "this model has no stream for 'arm': the kinds of its layout are text, image"
    assert bad == Bad(f"{path}:1", wrong)


# --- losses, roles and turns ------------------------------------------------------------------------------------------


def record_of(*segments):
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "a.png").write_bytes(public_forms.png(1))
        path = public_forms.jsonl(pathlib.Path(folder), "a.jsonl", [{"segments": segments}])
        (record,) = open_source(SourceConfig(kind="records", path=path))
    return record


def learned(document, spec=SPEC):
    """The text that the tokens of a document learn, with the weight of each token."""
    piece = expand(document, spec).pieces["text"]
    weight = piece["loss_weight"]
    return piece["targets"][weight > 0].tolist(), weight[weight > 0].tolist()


def test_loss_and_weight_set_the_weights_of_the_tokens():
    record = record_of({"text": "ab", "loss": False}, {"text": "cd"}, {"text": "ef", "weight": 0.25})
    ids, weight = learned(documents.to_document(record, documents.DocumentChoice()))
    assert ids == [*b"cdef", text.EOS] and weight == [1, 1, 0.25, 0.25, 0.25]
    record = record_of({"text": "ab"}, {"image": "a.png", "weight": 0.5})
    document = documents.to_document(record, documents.DocumentChoice())
    assert learned(document) == ([*b"ab", text.BOI, text.EOS], [1, 1, 0.5, 0.5])
    assert (expand(document, SPEC).pieces["image"]["loss_weight"] == 0.5).all()


def test_roles_follow_from_place_and_turn_unless_they_are_stated():
    image = {"image": "a.png"}

    def roles(*segments):
        document = documents.to_document(record_of(*segments), documents.DocumentChoice())
        return [segment.role for segment in document if segment.kind == "image"]

    assert roles(image, {"text": "a"}, image) == ["both", "target"]
    assert roles(image | {"loss": False}, {"text": "a"}, image | {"role": "both"}) == ["context", "both"]
    assert roles(image | {"turn": "user"}, image | {"turn": "assistant"}, {"text": "a", "turn": "assistant"}) == [
        "context",
        "both",
    ]


def test_only_the_turns_of_the_config_are_learned():
    said = [{"text": turn[0], "turn": turn} for turn in ("system", "user", "assistant", "user", "assistant")]
    said[1]["loss"] = True
    config = DataConfig(drop_caption=0.0)
    record = record_of(*said)
    document = documents.to_document(record, documents.choose_document(record, config, (0, 0)))
    whole = text.decode(np.concatenate([segment.value for segment in document]))
    assert whole == "s\nUser: u\nAssistant: a\nUser: u\nAssistant: a"
    # A turn that is learned is learned to its end: of the assistant's, the token at which the decoder stops.
    assert bytes(i for i in learned(document)[0] if i < 256) == b"u\na\na"
    assert learned(document)[0].count(text.EOS) == 2
    config = dataclasses.replace(config, learned_turns=("user", "assistant"))
    document = documents.to_document(record, documents.choose_document(record, config, (0, 0)))
    assert bytes(i for i in learned(document)[0] if i < 256) == b"u\na\nu\na"
    with pytest.raises(UsageError, match="assistant"):
        dataclasses.replace(config, learned_turns=("asistant",)).validate()


def test_chance_leaves_out_the_conditions_of_what_is_drawn_last():
    config = DataConfig(drop_caption=0.5, drop_conditions={"image": 0.3}, flip=0.0)
    drawn = record_of({"image": "a.png", "loss": False}, {"text": ["a", "b"], "loss": False}, {"image": "a.png"})
    read = record_of({"image": "a.png"}, {"text": "a"})
    found, kept = [], []
    for index in range(1000):
        document = documents.to_document(drawn, documents.choose_document(drawn, config, (0, index)))
        found.append(("".join(text.decode(s.value) for s in document if s.kind == "text"), document[0].dropped))
        document = documents.to_document(read, documents.choose_document(read, config, (0, index)))
        kept.append(len(document) == 2 and not document[0].dropped)
    assert all(kept)
    shares = {word: np.mean([word == one for one, _ in found]) for word in ("", "a", "b")}
    assert abs(shares[""] - 0.5) < 0.05 and abs(shares["a"] - 0.25) < 0.05 and abs(shares["b"] - 0.25) < 0.05
    assert abs(np.mean([dropped == ("image",) for _, dropped in found]) - 0.3) < 0.05


def test_pictures_of_one_record_are_mirrored_together(tmp_path):
    record = record_of({"image": "a.png"}, {"text": "a"}, {"image": "a.png"})
    mirrored = documents.to_document(record, documents.DocumentChoice(mirror=True))
    plain = documents.to_document(record, documents.DocumentChoice())
    for at in (0, 2):
        np.testing.assert_array_equal(mirrored[at].value, plain[at].value[:, ::-1])


def test_prepare_writes_records_and_says_what_it_leaves_out(tmp_path):
    public_forms.pictures(tmp_path, lambda i: f"{i}.png", 1)
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"image": name, "conversations": said} for name in ("0.png", "1.png")]
    path = public_forms.whole(tmp_path, "chat.json", rows)
    arguments = ["--data_dir", str(tmp_path), "--records", path, "--reader", "llava", "mine"]
    done = run_program(tmp_path / "once", "transfusion.prepare", *arguments)
    assert done.code == 0 and "mine: 1 records, 1 left out in" in done.out
    assert f"left out {path}#1: " in done.err
    (record,) = open_source(SourceConfig(kind="records", path=str(tmp_path / "mine")))
    assert [segment.turn for segment in record["segments"]] == ["user", "user", "assistant"]
    again = run_program(tmp_path / "again", "transfusion.prepare", *arguments)
    assert again.code == 2 and "exists" in again.err and len(again.err.splitlines()) == 1
