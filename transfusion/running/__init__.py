"""Keeps a run alive and records it. Nothing here knows of models or data.

- Checkpoints: `checkpoint` saves states, `restore` reads them, `seals` tells whether one is intact, `state_form`
  whether it fits; `orbax_noise` handles what orbax leaves behind when a save fails. `published` reads weights that were
  published, in place of checkpoints.
- Faults: `guard` skips updates that are not finite, `interruption` turns a signal into a checkpoint, `supervise` starts
  processes again when one faults, with `ranks` (those processes) and `heartbeat` (what they report).
- Several processes: `distributed` joins them, after `roll_call` and its `desk` have found them all at one of the
  `addresses`; `agreement` makes them agree, `local_rows` splits a batch among them.
- Records: `metrics`, `throughput`, `memory`, `profile` and `chips` for numbers, `provenance` for commands and versions.
- The process itself: `jax_setup` sets JAX up, `own_files` opens a program's own files and locks a workdir.
"""
