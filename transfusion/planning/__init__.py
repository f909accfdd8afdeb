"""Estimates what training and sampling cost on devices that need not be there. The program is `transfusion.plan`.

`forecast` says what a training on this machine would do, for `transfusion.train --dry_run`.

`cost` says what a cost is and the least time a chip needs for it. `compiled` compiles the real programs for a topology
and reads their collectives with `hlo`; `shapes` estimates from shapes alone, and searches for a sharding. `gpus`
describes GPUs to the compiler, `assembly` says what the kernels of a program take of one, and `traffic` counts the
bytes that the kernels of a program move.
"""
