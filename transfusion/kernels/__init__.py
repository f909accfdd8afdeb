"""Attention kernels for accelerators, which visit only the blocks of a row in which the rule allows a pair.

- `plan` cuts rows into blocks, and says which pairs of blocks are needed. `runs` has the blocks that each block needs
  as runs of neighbours. All layers of a forward pass share both.
- `kernel` says what a kernel is to the model, and `devices` runs one on a mesh of devices.
- `triton` is attention on GPUs: the programs are in `triton_kernels`, and `triton_tiles` has what they share.
- `derivatives` makes one attention of a platform's kernels, for `jax.grad` and `jax.jvp`.
- `visits` is a flat list of all rows' needed pairs of blocks, along which kernels for TPUs run.
- `mosaic` is attention on TPUs: `mosaic_forward`, `mosaic_backward`, `mosaic_tangents`, and `mosaic_tiles`, which these
  share.

The rule is that of `transfusion.sequence.masks.intervals`. What a kernel computes is held equal to the plain reference,
`transfusion.model.attention.masked_attention`, by tests that run kernels in an interpreter on any machine.
"""
