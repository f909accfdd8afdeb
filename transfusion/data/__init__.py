"""Reads data sets and turns them into batches. It knows the language of documents (`sequence`) and nothing of models.

How a batch comes about, in this order:

- `config`: the settings, and what a record is. `sizes`: those of images that keep nearly their own aspect.
- `sources`: opens a source by its kind: `tfds_source` (with `tfds_open`), `folder` (with `tables` and `parquet`),
  `webdataset` (with `tars`), `text_source` (with `text_records`), `record_source`, or `scenes`, which makes what
  it reads. `hold_out` keeps a share apart; `copies` fetches what lies behind URLs.
- `segments`: the record form. `record_files` reads the files that hold records, `record_writer` writes
  them, and `readers` read public forms.
- `media`: how images (`images`), clips (`clips`) and sounds (`sounds`) are read, checked and resized; `forms`: what
  they must be for a model.
- `records`: mixes, shuffles and repeats the sources.
- `documents`: makes a record a document, by chance in one of several forms; `examples` makes that packable tokens.
- `packing`: fills rows with documents.
- `pipeline`: all of it, ahead of training by the threads of `threads`, with a state for checkpoints (`position`).
  `image_batches` is the simpler pipeline of autoencoders.

Besides these: `latent_cache` writes and `latent_source` reads encoded data sets (`latent_files`); `check` refuses data
that cannot be used before training starts; `builders` and `packaged` make the data sets of the demos. Files of
strangers are read through `files`, `patterns`, `foreign_text` and `array_records`, and `faults` tells a bad record from
a fault of the program. `prepare`, `cache_latents` and `show` are programs that have moved up.
"""
