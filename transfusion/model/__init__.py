"""The model: each stream has an embed and a head, and one trunk lies between them.

- `unified` puts the model together from its `config`: `embeds` (how tokens enter), the trunk, `heads` (how they leave).
- `transformer` is the trunk. A layer is made of the weights in `block`, attention (`attention`, with `blockwise` for
  long rows and `rope` for positions) and, for some systems, cross-attention (`cross`). `cache` keeps keys and values.
- Patch coders are embeds with a network of their own: `unet`, `convnext` and `vit`.
- `blocks` are convolutional layers, `quantizers` and `multiscale` turn latents into codes; autoencoders use them, too.
- `parameters` declares parameters with their logical axes, `names` names them in configs.
"""
