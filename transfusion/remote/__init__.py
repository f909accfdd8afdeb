"""Files of other machines: `hub` fetches models of a hub (`hf://OWNER/NAME`), `urls` files and folders behind URLs.

`secrets` refuses keys and passwords on command lines. Nothing here knows what is in the files. What they need (fsspec's
drivers of buckets, huggingface_hub) are extras.
"""
