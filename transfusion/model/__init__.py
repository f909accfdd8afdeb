"""The model: each stream has an embed and a head, and one trunk lies between them.

- `unified` puts the model together from its `config`: the `parts` of each stream (how its tokens enter, by `embeds` and
  by `vectors` that tell of their item, and leave, by `heads`), and the trunk. `inputs` is what tokens bring along.
- `transformer` is the trunk. A layer has the weights of `block`, which its `sublayers` use one after the other:
  `attention` (with `blockwise` for long rows and `rope` for positions), for some systems cross-attention (`cross`), and
  a feed-forward network. `experts` are shared and routed ones beside it, which multiply by `expert_products`.
  `modulation` lets the noise level scale and shift a layer, `depth` runs all layers, and `cache` keeps keys and values.
  `observe` measures the tokens in between.
- Patch coders are embeds with a network of their own: `unet`, `convnext` and `vit`. `resample` gives the trunk fewer
  tokens than a tower has, and `token_flow` denoises each token by itself behind it.
- `blocks` are convolutional layers, `quantizers` and `multiscale` turn latents into codes, and `codebooks` is what an
  optimizer does not train of these; autoencoders use them, too.
- `parameters` declares parameters with their logical axes, `names` names them in configs, `weights` casts them for
  loops without gradients, and `gathered` multiplies with those that are split over devices.
"""
