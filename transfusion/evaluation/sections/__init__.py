"""The sections of report.html: each is a function from what the report is made of to HTML.

`material` reads a run, its metrics, its evaluation and real examples; `numbers` has the headline, the scores and the
curves; `images` has drawn images and written captions; `origin` has a training row and the commands behind the numbers.
"""
