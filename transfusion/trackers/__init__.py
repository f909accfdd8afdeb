"""Shows a run to people while it trains: TensorBoard, Weights & Biases, Trackio, MLflow, several at once.

`config` has the settings; `tracker` says what a tracker is, four methods; `table` lists them: `jsonl` (always),
`tensorboard`, `wandb`, `trackio`, `mlflow`. `apart` runs one in a thread of its own, so that one that fails or hangs
stops no training; `together` is what the training calls, and `tags` groups the numbers. The libraries are extras, and
each is imported when a run uses it.
"""
