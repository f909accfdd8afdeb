"""Keeps a run alive, and knows nothing of models or data.

- `checkpoint` saves states and `restore` reads them; `seals` tell whether one is intact, `state_form` whether it is of
  the form that a run wants, and `orbax_noise` turns what a failed save leaves behind into one line.
- `guard` skips updates whose loss is no number; `interruption` ends a run after its step when a signal comes.
- `supervise` starts the processes of a training again when one of them (`ranks`) faults, by its `heartbeat`.
- `distributed` brings processes together, at `addresses` and after a `roll_call`; `agreement` has what they must agree
  on, `local_rows` which rows of a batch each one reads.
- `metrics`, `tensorboard` and `throughput` log a run; `chips` says what its accelerators can do, and `provenance` which
  source and machine it ran on.
- `jax_setup` sets JAX up for every program, and `own_files` opens the files that a program keeps in a workdir.
"""
