"""Measures a trained run, and shows it: scores with intervals, pictures, and the parts of the HTML report.

- What is measured: `measures` (all that a unified model allows, as `options` say), from `losses` (on held-out data),
  `scores` (of drawn images and written captions, with the classifier of `judge`), `caption_scores` (captions by their
  words), `frechet`, `kernel` and `retrieval` (against real images), `similarity` (against texts, by a released CLIP or
  SigLIP, whose Transformers are `towers`), `zero_shot` (of contrastive models), and `reconstruction` (of codecs).
  `scenes` has the exact scores of scenes. `while_training` draws for trackers. `intervals` gives each score its
  interval, `meanings` says what it counts, `examples` reads the real images, `results` reads a written evaluation.
- What is shown: `score_table` and `sweep_table` (lines of text), `pictures` (masks and grids), `charts` (curves),
  `page` (the report's HTML), and `sections` (the parts of the report).
- `show` is the program that shows the records of a source, as a page of the parts in `records_page`.

The other programs are `transfusion.evaluate` and `transfusion.report`.
"""
