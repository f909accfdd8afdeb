"""Between media and what a stream holds: images, clips and sounds <-> latents, text <-> ids."""

import dataclasses

from transfusion.codecs.levels import LevelsConfig
from transfusion.codecs.mel import MelConfig
from transfusion.errors import UsageError


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """How a model's media become latents or codes; one codec for all that it reads and draws besides text.

    Attributes:
      kind: a key of `transfusion.latents.CODECS`: 'pixels' (the pixels of images or clips are the latents),
        'autoencoder' (of images, or of each frame of a clip), 'mel' (sounds as log-mel frames), 'levels' or
        'mel_levels' (codes of pixels or of log-mel frames, without training).
      path: the run whose weights an autoencoder has.
      mel: see `MelConfig`.
      levels: see `LevelsConfig`.
    """

    kind: str = "pixels"
    path: str = ""
    levels: LevelsConfig = LevelsConfig()
    mel: MelConfig = MelConfig()
    levels: LevelsConfig = LevelsConfig()

    def __post_init__(self):
        if self.kind == "autoencoder" and not self.path:
            raise UsageError("codec.path must name the workdir of a trained autoencoder")
