"""Keeps what a workdir says true.

`resume` compares a run with a config before anything is written; `changes` is the table of what each field of a config
means to the weights; `portable` keeps a run's files inside its workdir.
"""
