"""Trained runs in the hands of others: lists of prompts, evaluation harnesses, and the public scorers of pictures.

- `lines` reads a file of prompts, and `batches` works through it, a batch at a time; what is done is not done again.

`transfusion.sample --prompts` is the program for these.
"""
