"""Draws text, codes and images from a model: it continues documents, as training packs them, token by token.

- `config` has the settings, and `settings` what of them the compiled code reads.
- A layout table says which kinds of segments the model draws (`drawable`), and which tokens the decoder appends for
  each (`parts`). `prompts` lays out what a row begins with, and `place` a part behind what a row has.
- `decoder` continues a list of prompts, which `queue` hands to the rows of `loop`: this is what is compiled, once for
  all lists. `state` is what the loop carries, `weights` what it reads, `memory` what that takes. `conversation` answers
  one turn after another.
- Text: `writer` puts out a token a step, which `choose` draws from the logits.
- Images and other kinds: `ways` has the two ways of drawing. `speller` writes an image as ids of the text's vocabulary,
  by a `grammar`. `painter` draws it by a stream of its own, as `drawing` says for the stream's objective: by `solvers`
  for latents (`trajectory` keeps the steps), by `token_flows` for patches denoised one by one, by `codes`
  for codes. `request` is what all of them share; `guidance` compares with fewer conditions, which `conditions` lays
  out.
- `reference` and `reference_codes` are the same decoder written plainly and slowly; tests hold the two equal.
"""
