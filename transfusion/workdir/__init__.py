"""The folder of a run: what is in it stays true and complete.

`place` checks that a folder can hold a run; `config_file` reads its config.json, and `json_file` is a config file that
does so; `resume` compares a run with the experiment that continues it, before anything is written; `changes` is the
table of what each field of a config means to the weights; `portable` keeps the files that a run needs inside its
workdir, so that it can be moved; `digest` tells whether two experiments are the same run.
"""
