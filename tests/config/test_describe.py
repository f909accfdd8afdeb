"""Every field of a config has a meaning that programs and pages can show, taken from its class."""

from transfusion.config import Experiment
from transfusion.config.describe import sections


def test_every_field_of_an_experiment_is_described():
    found = sections(Experiment)
    assert len(found) > 30
    assert not [f"{s.kind.__name__}.{f.name}" for s in found for f in s.fields if not f.meaning]
    assert not [s.kind.__name__ for s in found if not s.says]


def test_paths_types_and_defaults_are_those_of_the_command_line():
    by_name = {s.kind.__name__: s for s in sections(Experiment)}
    assert by_name["OptimConfig"].path == "optim"
    assert by_name["LearningRateGroup"].path == "optim.groups[]"
    assert by_name["SourceConfig"].path == "data.sources.NAME"
    fields = {f.name: f for f in by_name["DataConfig"].fields}
    assert (fields["caption_first"].type, fields["caption_first"].default) == ("float", "0.8")
    assert fields["caption_first"].meaning == "probability that the caption stands before its image"  # a comment
    steps = next(f for f in by_name["KindConfig"].fields if f.name == "steps")
    assert (steps.type, steps.default) == ("int | None", "None")
    low = next(f for f in by_name["SamplerConfig"].fields if f.name == "guidance_low")  # several fields in one entry
    assert low.meaning.startswith("the interval of t")
