"""Trained runs in the hands of others: lists of prompts, evaluation harnesses, and the public scorers of pictures.

- `lines` reads a file of prompts, and `batches` works through it, a batch at a time; what is done is not done again.
  `shapes` says which prompts may be put together. The program is `transfusion.sample --prompts`.
- `likelihood` says how likely a run holds a text, and writes texts up to a stop. On top of it, `lm_harness` and
  `lmms_harness` are the model classes of lm-eval and lmms-eval.
- `folders` draws the prompts of public benchmarks under the names that their scorers read, and `drawings` scores a
  folder against its texts by a released CLIP or SigLIP.

`python -m transfusion.adapters` is the program for these.
"""
