"""A page in the browser on which people chat with a trained model and watch it draw.

`page` lays out the page (gradio) and `__main__` serves it; `answers` makes the moments of an answer, from noise to the
picture; `inside` records what the tokens of a conversation look at, and `maps` draws that; `uploads` reads the files
that visitors send.
"""
