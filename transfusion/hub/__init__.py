"""Publishes a run, as a folder or on a hub: `python -m transfusion.hub --help`.

`publish` writes the folder (safetensors, config, tokenizer, codecs, scores, pictures) and uploads it; `card` writes its
README.md, the model card, with the licences that `licences` knows. Published runs are read by
`transfusion.load_run("hf://OWNER/NAME")` and by every program that takes a workdir; see `transfusion.running.published`
and `transfusion.remote.hub`.
"""
