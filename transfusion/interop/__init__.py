"""Imports released checkpoints into workdirs and exports them again: `python -m transfusion.interop --help`.

- `known` is the table of model families (`family` says what a family is). One module per family reads its config.json
  and names its arrays: `language`, `autoencoder`, `vq`, `siglip`, `dit`, `sd3`, `omnigen`, `cosmos3`, `bagel`,
  `showo2`, `janus`, `vocabulary` (Chameleon and Emu3). They share `fields` (checked fields of a config) and `modules`.
- `leaves` maps arrays of theirs to ours, both ways, with the conversions of `converts`.
- `importing` and `export` are the two ways. They read released folders with `opening` and `files`, write them with
  `writing`, keep tokenizers (`tokenizer`), and fill a checkpoint's arrays in place (`zarr`), a few MiB at a time.
"""
