"""The sections of report.html, each a function that turns the material of a report into HTML.

`material` reads a run, its metrics, its evaluation and real examples; `numbers` has the headline, the scores and the
curves; `telemetry` shows gradients of each modality and the growth of the trunk; `experts` shows which routed experts
each modality takes; `images` has drawn images and written captions; `origin` has a training row and the commands behind
the numbers.
"""
