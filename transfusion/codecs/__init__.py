"""Codecs turn media into what a stream holds, latents or codes, and back. They read neither data sets nor runs.

- Without training: `pixels` (the pixels are the latents), `mel` (log-mel frames of sounds), `levels` (rounded values).
- Autoencoders (`autoencoder_config`): `kl_autoencoder` (Gaussian latents), `vq_autoencoder` (codes; `movq` adds time)
  and `semantic` (the features of a vision tower). `convolutions` has their encoder and decoder.
- Their training: `learner`, with `losses`, `discriminator` and `features` (the network of the perceptual loss).

`transfusion.latents` opens the codecs that an experiment names.
"""

import dataclasses

from transfusion.codecs.levels import LevelsConfig
from transfusion.codecs.mel import MelConfig
from transfusion.errors import UsageError


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """How media become latents or codes. A model has one codec for all kinds of media, or several.

    Attributes:
      kind: a key of `transfusion.latents.CODECS`: 'pixels' (the pixels of images or clips are the latents),
        'autoencoder' (of images, or of each frame of a clip), 'mel' (sounds as log-mel frames), 'levels' or
        'mel_levels' (codes of pixels or of log-mel frames, without training).
      path: the workdir of the autoencoder, for kind 'autoencoder'.
      levels: for kinds 'levels' and 'mel_levels'.
      mel: for kinds 'mel' and 'mel_levels'.
    """

    kind: str = "pixels"
    path: str = ""
    levels: LevelsConfig = LevelsConfig()
    mel: MelConfig = MelConfig()

    def __post_init__(self):
        if self.kind == "autoencoder" and not self.path:
            raise UsageError("codec.path must name the workdir of a trained autoencoder")
