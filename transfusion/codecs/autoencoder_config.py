"""The config of all convolutional autoencoders, and what its fields may be."""

import dataclasses

import jax.numpy as jnp

from transfusion.codecs.discriminator import AdversarialConfig
from transfusion.errors import UsageError, check
from transfusion.model.blocks import FRAMES
from transfusion.model.multiscale import QUANTIZERS
from transfusion.model.quantizers import QuantizerConfig
from transfusion.model.vit import ViTConfig

RECONSTRUCTIONS = {"l1": jnp.abs, "l2": jnp.square}
FORMS = ("kl", *QUANTIZERS)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The sizes of a convolutional autoencoder, and the weights of the terms of its loss.

    Attributes:
      form: what the latents are: 'kl' (Gaussian latents) or codes, by a key of `QUANTIZERS`: 'vq', 'fsq', 'multiscale',
        or 'movq' (the frames of clips are encoded as images; time is mixed between them and the codes, as in Emu3).
      image_channels: channels of the images.
      channels: channels at each resolution, the finest first. The image is halved between two of them.
      patch: side of the patches of pixels that the first convolution reads as channels and the last one writes, so that
        no layer has to work on single pixels (LTX-Video, arXiv 2501.00103, section 2.1).
      patch_frames: frames of such a patch. They count in `time_down`.
      straight: whether a linear map from the pixels of a latent's cell to the latent, and one back, are added to what
        the convolutions make, which begin with nothing. So it begins as principal components, and learns fast (DC-AE,
        arXiv 2410.10733, section 3.2, has such shortcuts without weights).
      latent_channels: channels of the latents, before they become codes.
      layers_per_block: residual blocks at each resolution of the encoder; the decoder has one more.
      norm_groups: groups of each group norm; they divide all `channels`.
      middle_attention: whether an attention over all pixels stands in the middle of encoder and decoder.
      stem: channels of the first convolution; 0 takes those of the first resolution. Released weights differ in it.
      encoder_attention, decoder_attention: the resolutions (places in `channels`) at which an attention over all pixels
        follows each residual block. Some released weights have them.
      attention_heads: heads of all these attentions.
      code_norms: whether the decoder's norms read the codes (MoVQ, see `blocks.SpatialNorm`).
      decodes: whether there is a decoder; Chameleon's released weights have none.
      quant_convs: whether convolutions of one pixel stand between encoder, latents and decoder. Stable Diffusion has
        them, FLUX has not.
      scale, shift: latents are given out as (z - shift) * scale, since a model wants them with unit variance.
      logvar_range: the log variances of Gaussian latents are clipped to it.
      reconstruction: a key of `RECONSTRUCTIONS`: how the error of a pixel counts.
      kl_weight, perceptual_weight: weights of terms of the loss, each of which is a mean per value of an image.
      perceptual_layers: the layers of VGG that the perceptual term compares (see `codecs.features`).
      tower: a vision tower whose features are the latents. It is frozen, and only a decoder learns (`codecs.semantic`).
      noise: standard deviation of the noise that training adds to a tower's features.
      quantizer: how latents become codes; unused by 'kl'.
      adversarial: the discriminator, if there is one.
      frames: '' reads images; a key of `blocks.FRAMES` reads clips [B, T, H, W, C].
      time_down: by how much the number of frames shrinks: `patch_frames` times a power of two, for the first halvings
        shrink it, too. With frames 'first', 1 + n frames become 1 + n / time_down.
    """

    form: str = "kl"
    image_channels: int = 3
    channels: tuple[int, ...] = (16, 32)
    patch: int = 1
    patch_frames: int = 1
    straight: bool = False
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_groups: int = 8
    middle_attention: bool = True
    stem: int = 0
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    attention_heads: int = 1
    code_norms: bool = False
    decodes: bool = True
    quant_convs: bool = True
    scale: float = 1.0
    shift: float = 0.0
    logvar_range: tuple[float, float] = (-30.0, 20.0)
    reconstruction: str = "l1"
    kl_weight: float = 1e-6
    tower: ViTConfig | None = None
    noise: float = 0.0
    quantizer: QuantizerConfig = QuantizerConfig()
    perceptual_weight: float = 0.0
    perceptual_layers: tuple[int, ...] = (0, 1, 2)
    adversarial: AdversarialConfig = AdversarialConfig()
    frames: str = ""
    time_down: int = 1

    def __post_init__(self):
        for field in ("channels", "logvar_range", "perceptual_layers", "encoder_attention", "decoder_attention"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        self._check_sizes()
        check("codec.reconstruction", self.reconstruction, RECONSTRUCTIONS)
        check("codec.form", self.form, FORMS)
        check("codec.frames", self.frames, ("", *FRAMES))
        self._check_frames()
        if not self.quant_convs and self.code_channels != self.latent_channels:
            raise UsageError(
                f"codec.latent_channels is {self.latent_channels}, and codes have {self.code_channels}: give the same, "
                "or quant_convs between them"
            )
        if self.perceptual_weight < 0:
            raise UsageError("codec.perceptual_weight must not be negative")
        self._check_tower()

    def _check_sizes(self) -> None:
        bad = [c for c in (self.stem, *self.channels) if c < 0 or c % self.norm_groups]
        if not self.channels or 0 in self.channels or bad:
            raise UsageError(
                f"codec.channels {self.channels}: each must be a multiple of norm_groups={self.norm_groups}"
            )
        counts = (self.image_channels, self.patch, self.patch_frames, self.latent_channels, self.layers_per_block)
        if min(counts) < 1 or self.scale == 0:
            raise UsageError(
                "codec: image_channels, patch, patch_frames, latent_channels, layers_per_block must be >= 1 and scale "
                "not 0"
            )
        places = {*self.encoder_attention, *self.decoder_attention}
        if not places <= {*range(len(self.channels))}:
            raise UsageError(f"codec: encoder_attention and decoder_attention must be places in channels, not {places}")
        with_attention = [self.channels[i] for i in places]
        if self.attention_heads < 1 or any(c % self.attention_heads for c in (*with_attention, self.channels[-1])):
            raise UsageError(
                f"codec.attention_heads {self.attention_heads} must divide the channels of every attention"
            )

    def _check_frames(self) -> None:
        # The latents of 'movq' are halved in time behind the last resolution.
        most = 32 if self.form == "movq" else len(self.channels)
        halvings = [2**i for i in range(most)]
        if self.time_down not in [self.patch_frames * n for n in halvings] or (self.time_down > 1 and not self.frames):
            raise UsageError(
                f"codec.time_down is {self.time_down}: it must be a power of two up to {halvings[-1]}, times "
                f"patch_frames={self.patch_frames}, and needs frames"
            )
        if (self.patch_frames > 1 or self.straight) and (self.first or self.form == "movq"):
            raise UsageError(
                "codec.patch_frames and codec.straight: a first frame that is alone, and form 'movq', have neither"
            )
        if self.form == "movq" and (self.frames != "causal" or not self.quant_convs):
            raise UsageError("codec.form 'movq' reads clips: frames must be 'causal', and quant_convs true")
        if self.code_norms and self.frames and self.form != "movq":
            raise UsageError(
                "codec.code_norms: only images, and clips of form 'movq', can have norms that read the codes"
            )
        if self.form == "multiscale" and self.frames:
            raise UsageError("codec.frames: a multi-scale quantizer reads images only")

    def _check_tower(self) -> None:
        tower = self.tower
        if tower and (self.form != "kl" or self.frames or self.adversarial.weight):
            raise UsageError("codec.tower: a decoder of features needs form 'kl', no frames and adversarial.weight 0")
        if tower and (tower.width, tower.channels, tower.patch) != (
            self.latent_channels, self.image_channels, self.down,
        ):  # fmt: skip
            raise UsageError(
                f"codec.tower: its width {tower.width} must be latent_channels, {self.latent_channels}, its channels "
                f"{tower.channels} image_channels, {self.image_channels}, and its patch {tower.patch} the factor by "
                f"which the decoder enlarges, {self.down}"
            )

    @property
    def patches(self) -> tuple[int, ...]:
        """The sides of a patch: (rows, columns), of clips (frames, rows, columns)."""
        return (self.patch_frames,) * bool(self.frames) + (self.patch, self.patch)

    @property
    def cells(self) -> tuple[int, ...]:
        """The sides of what a latent stands for, as those of a patch."""
        return (self.time_down,) * bool(self.frames) + (self.down, self.down)

    @property
    def first(self) -> int:
        """The frames at the start of a clip that are not joined with others."""
        return FRAMES[self.frames].first if self.frames else 0

    @property
    def down(self) -> int:
        """The factor by which each side of the image shrinks."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def code_channels(self) -> int:
        """Channels of what the decoder's side of the quantizer gets."""
        if self.form == "kl":
            return self.latent_channels
        return len(self.quantizer.levels) if self.form == "fsq" else self.quantizer.channels or self.latent_channels
