"""Keeps a run alive, and knows nothing of models or data.

`checkpoint` saves and reads states, and `seals` tell whether one is intact; `guard` skips losses that are not finite;
`supervise` restarts; `distributed`, `roll_call` and `addresses` bring processes together; `metrics`, `tensorboard`,
`throughput` and `chips` log; `provenance` says which source ran; `own_files` locks a workdir.
"""
