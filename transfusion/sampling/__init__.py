"""Draws text, codes and images from a model: it continues documents, as training packs them, token by token.

- `config` has the settings. `layout` says from a run's layout table which tokens the decoder appends, and `prompt` what
  a row begins with.
- `decoder` is the loop over a batch of prompts, compiled once; `state` is what it carries, `memory` what that takes.
- Text: `choose` takes the next id; `grammar` and `spelled` write images as ids of the text's vocabulary.
- Images: `drawing` chooses the way by the stream's objective: `solvers` for latents (`trajectory` keeps the steps),
  `codes` for codes. `job` is what all ways share, `guidance` compares with fewer conditions.
- `reference` and `reference_codes` are the same decoder written plainly and slowly; tests hold the two equal.
"""
