"""Measures a trained run, and shows it: scores with intervals, pictures, and the parts of the HTML report.

- What is measured: `losses` (on held-out data), `scores` (of drawn images and written captions, with the classifier of
  `judge`), `frechet` and `retrieval` (against real images), `reconstruction` (of codecs). `intervals` gives each score
  its interval, `examples` reads the real images, `results` reads a written evaluation.
- What is shown: `pictures` (masks and grids), `charts` (curves) and `page` (the report's HTML).

The programs are `transfusion.evaluate` and `transfusion.report`.
"""
