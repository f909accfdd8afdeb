"""The parts of training, which `transfusion.train` opens and closes.

`loop` goes from step to step; `step` has the train state, one update of it, and where its parts lie on the devices;
`saving` saves and restores it together with the position in the data; `held_out` computes losses of held-out data
between updates; `telemetry` looks at the gradients of each modality and at the growth of the trunk; `watching` does
both, and draws, when they are due; `run_log` writes rows of metrics and the progress line.
"""
