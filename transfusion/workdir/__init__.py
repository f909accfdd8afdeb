"""Keeps what a workdir says true.

`config_file` reads the experiment of a workdir, and `json_file` is a config file that does so; `resume` compares a run
with a config before anything is written; `changes` is the table of what each field of a config means to the weights;
`portable` keeps a run's files inside its workdir; `place` refuses a workdir that cannot be written.
"""
