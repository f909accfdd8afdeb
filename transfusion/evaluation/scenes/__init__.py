"""Scores of runs on scenes, by an exact judge: how well a model draws, reads, and does both.

- `tasks`: which records of each task a run gets right.
- `clips`: clips, and worlds that are continued frame by frame.
- `facts`: drawing and reading of the same facts, on split after split.
- `both`: what a model reads in its own drawings, and whether one ability helps the other.
- `normalised`: scores from which chance is taken off, their rank, and intervals over prompts and seeds.
- `measure`: all of this for a run, as the field `scenes` of evaluation.json has it.
"""
