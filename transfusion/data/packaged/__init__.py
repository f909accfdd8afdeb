"""Data sets that are made here from files of installed packages: nothing is downloaded, TensorFlow is not needed.

`base` has what their TFDS builders share. One module per data set: `digits`, `emoji` (its names and held-out
combinations in `emoji_catalogue`), `animations`, `speech` (what each recording says in `speech_catalogue`),
`stdlib_text` and `scenes`. `omni_digits` is records with segments, and no TFDS data set. `transfusion.data.builders` is
the table of them, and writes their files.
"""
