"""Between media and what a stream holds: images <-> latents, text <-> ids."""

import dataclasses

from transfusion.errors import UsageError, check

CODECS = ("pixels", "autoencoder")


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """`kind` 'pixels' (the pixels are the latents) or 'autoencoder', whose weights are those of the run at `path`."""

    kind: str = "pixels"
    path: str = ""

    def __post_init__(self):
        check("codec.kind", self.kind, CODECS)
        if self.kind == "autoencoder" and not self.path:
            raise UsageError("codec.path must name the workdir of a trained autoencoder")
