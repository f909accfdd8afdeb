"""The numbers that each field of an experiment may have, in one table.

A number outside its range is refused at once, in one line; otherwise it could end in a traceback, or in a program that
never ends. The ranges are wide: a bound is what the formats and libraries below can take, or what no model comes near.
Whether fields fit each other is checked where they meet. Every field of type int or float has a row here, which a test
checks; only the settings of a sampler check themselves (`transfusion.sampling.config.LIMITS`), because callers give
them without a config, too. A field that names a row of a table, such as `optim.schedule`, is checked by its dataclass.
"""

import math
from typing import Any

from transfusion.errors import UsageError

_INT = 2**31 - 1  # jax counts in int32
_SIZE, _SIDE, _LAYERS = 2**20, 2**16, 4096
_FACTOR = 1e6
_TINY = 1e-12

Range = tuple[float, float]

# 'Class.field' -> (least, most), both allowed. For a field that is a list or a table, it is the range of each entry.
RANGES: dict[str, Range] = {
    # What jax.random.key tells apart, and numpy's SeedSequence takes.
    "Experiment.seed": (0, 2**32 - 1),
    "Experiment.steps": (1, _INT - 1),
    "Experiment.batch_size": (1, _SIZE),
    "Experiment.log_every": (1, _INT),
    "TransformerConfig.width": (1, _SIZE),
    "TransformerConfig.layers": (1, _LAYERS),
    "TransformerConfig.heads": (1, _SIDE),
    "TransformerConfig.kv_heads": (0, _SIDE),
    "TransformerConfig.head_size": (0, _SIDE),
    "TransformerConfig.ffn": (0, _SIZE),
    "TransformerConfig.ffn_multiple": (1, _SIZE),
    "FeedForwardConfig.ffn": (0, _SIZE),
    "FeedForwardConfig.experts": (1, _SIDE),
    "FeedForwardConfig.top": (1, _SIDE),
    "FeedForwardConfig.factor": (-_FACTOR, _FACTOR),
    "FeedForwardConfig.balance": (0, _FACTOR),
    "TransformerConfig.norm_epsilon": (0, 1),
    "ReleasedTrunk.ffn_norm_epsilon": (0, 1),
    "TransformerConfig.rope_theta": (0, 1e15),
    "TransformerConfig.rope_axes": (1, 3),
    "ReleasedTrunk.rope_sections": (0, _SIDE),
    "ReleasedTrunk.dual_layers": (0, _LAYERS - 1),
    "RopeScaling.factor": (_TINY, _FACTOR),
    "RopeScaling.low": (0, _FACTOR),
    "RopeScaling.high": (0, _FACTOR),
    "RopeScaling.original": (1, _INT),
    "RopeScaling.maximum": (1, _INT),
    "RopeScaling.short": (_TINY, _FACTOR),
    "RopeScaling.long": (_TINY, _FACTOR),
    "ViTConfig.width": (1, _SIZE),
    "ViTConfig.ffn": (1, _SIZE),
    "ViTConfig.layers": (1, _LAYERS),
    "ViTConfig.heads": (1, _SIDE),
    "ViTConfig.patch": (1, _SIDE),
    "ViTConfig.channels": (1, _SIDE),
    "ViTConfig.grid": (1, _SIDE),
    "ViTConfig.epsilon": (0, 1),
    "ConnectorConfig.depth": (0, _LAYERS),
    "TimeConfig.features": (2, _SIDE),
    "TimeConfig.scale": (-_FACTOR, _FACTOR),
    "Stream.labels": (0, _INT),
    "Released.pooled": (0, _SIZE),
    "Released.out_channels": (0, _SIDE),
    "Released.table_grid": (0, _SIDE),
    "Stream.budget": (0, 2**24),
    "Stream.weight": (0, _FACTOR),
    "Stream.vocabulary": (0, 2**24),
    "Stream.channels": (0, _SIDE),
    "Stream.patch": (1, _SIDE),
    "Stream.patch_frames": (1, _SIDE),
    "Stream.grid": (0, 2**24),
    "Stream.scales": (1, _SIDE),
    "Stream.fill": (-1, 2**24),
    "Stream.items": (0, 2**24),
    "Stream.coder_width": (1, _SIZE),
    "Run.opener": (-1, 2**24),
    "Run.closer": (-1, 2**24),
    "Run.time_low": (0, 1),
    "Spelling.codes": (0, 2**24),
    "Spelling.first": (0, 2**24),
    "Spelling.grids": (1, _SIZE),
    "Spelling.weight": (0, _FACTOR),
    "Spelling.size": (0, 2**24),
    "Spelling.size_end": (-1, 2**24),
    "Spelling.row_end": (-1, 2**24),
    "Spelling.frame_end": (-1, 2**24),
    "NextTokenConfig.z_loss": (0, _FACTOR),
    "NextTokenConfig.chunk": (-1, _INT),
    "AheadConfig.share": (0, 1),
    "AheadConfig.levels": (1, 20),
    "AheadConfig.guidance": (-_FACTOR, _FACTOR),
    "AheadConfig.power": (0, 2),
    "ContinuousConfig.mean": (-_FACTOR, _FACTOR),
    "ContinuousConfig.std": (_TINY, _FACTOR),
    "ContinuousConfig.shift": (_TINY, _FACTOR),
    "ContinuousConfig.shift_tokens": (1, 2**24),
    "ContinuousConfig.mode_scale": (-1, 2),
    "LevelsConfig.levels": (2, 2**16),
    "LevelsConfig.channels": (1, 16),
    "LevelsConfig.patch": (1, _SIDE),
    "LevelsConfig.low": (-_FACTOR, _FACTOR),
    "LevelsConfig.high": (-_FACTOR, _FACTOR),
    "LevelsConfig.scales": (1, _SIDE),
    "MelConfig.rate": (1, _SIZE),
    "MelConfig.bands": (1, _SIDE),
    "MelConfig.window": (1, _SIZE),
    "MelConfig.hop": (1, _SIZE),
    "MelConfig.floor": (1e-30, _FACTOR),
    "MelConfig.mean": (-_FACTOR, _FACTOR),
    "MelConfig.deviation": (_TINY, _FACTOR),
    "MelConfig.iterations": (0, 100_000),
    "AutoencoderConfig.image_channels": (1, _SIDE),
    "AutoencoderConfig.channels": (1, _SIZE),
    "AutoencoderConfig.latent_channels": (1, _SIZE),
    "AutoencoderConfig.patch": (1, _SIDE),
    "AutoencoderConfig.patch_frames": (1, _SIDE),
    "AutoencoderConfig.layers_per_block": (1, _LAYERS),
    "AutoencoderConfig.norm_groups": (1, _SIZE),
    "AutoencoderConfig.stem": (0, _SIZE),
    "AutoencoderConfig.encoder_attention": (0, _LAYERS),
    "AutoencoderConfig.decoder_attention": (0, _LAYERS),
    "AutoencoderConfig.attention_heads": (1, _SIZE),
    "AutoencoderConfig.scale": (-_FACTOR, _FACTOR),
    "AutoencoderConfig.shift": (-_FACTOR, _FACTOR),
    "AutoencoderConfig.logvar_range": (-_FACTOR, _FACTOR),
    "AutoencoderConfig.kl_weight": (0, _FACTOR),
    "AutoencoderConfig.noise": (0, _FACTOR),
    "AutoencoderConfig.perceptual_weight": (0, _FACTOR),
    "AutoencoderConfig.perceptual_layers": (0, _LAYERS),
    "AutoencoderConfig.time_down": (1, _SIDE),
    "QuantizerConfig.codes": (1, 2**24),
    "QuantizerConfig.channels": (0, _SIZE),
    "QuantizerConfig.decay": (0, 1),
    "QuantizerConfig.commitment": (0, _FACTOR),
    "QuantizerConfig.revive": (0, 1),
    "QuantizerConfig.candidates": (1, _SIZE),
    "QuantizerConfig.levels": (2, _SIDE),
    "QuantizerConfig.scales": (1, _SIDE),
    "QuantizerConfig.phis": (1, _LAYERS),
    "QuantizerConfig.phi_share": (0, 1),
    "AdversarialConfig.weight": (0, _FACTOR),
    "AdversarialConfig.start": (0, _INT),
    "AdversarialConfig.channels": (1, _SIZE),
    "SourceConfig.weight": (0, 1e12),
    "SourceConfig.hold_out": (0, 1),
    "SourceConfig.length": (0, _INT),
    "SourceConfig.rate": (0, _SIZE),
    "SourceConfig.resolution": (0, _SIDE),
    "SizesConfig.tokens": (0, 2**24),
    "SizesConfig.multiple": (1, _SIDE),
    "SizesConfig.aspect": (1, 64),
    "SizesConfig.listed": (1, _SIDE),
    "SizesConfig.growth": (0, _INT),
    "SourceConfig.channels": (0, 3),
    "SourceConfig.record_bytes": (1, _INT),
    "DataConfig.caption_first": (0, 1),
    "DataConfig.drop_caption": (0, 1),
    "DataConfig.drop_conditions": (0, 1),
    "DataConfig.both": (0, 1),
    "DataConfig.edit": (0, 1),
    "DataConfig.draw_earlier": (0, 1),
    "DataConfig.flip": (0, 1),
    "DataConfig.shift": (0, _SIDE),
    "DataConfig.open_rows": (1, 100_000),
    "DataConfig.min_piece": (1, 2**63),
    "DataConfig.cache_megabytes": (0, 2**40),
    "DataConfig.prefetch": (0, 10_000),
    "DataConfig.read_threads": (0, 1024),
    "DataConfig.read_ahead": (1, _SIDE),
    "DataConfig.pixel_limit": (1, 2**63),
    "DataConfig.max_bad_share": (0, 1),
    "DataConfig.max_bad_after": (1, 2**63),
    "OptimConfig.learning_rate": (_TINY, 1e3),
    "OptimConfig.final_learning_rate": (0, 1e3),
    "OptimConfig.warmup": (0, _INT),
    "OptimConfig.b1": (0, 1 - 1e-9),
    "OptimConfig.b2": (0, 1 - 1e-9),
    "OptimConfig.epsilon": (0, 1),
    "OptimConfig.weight_decay": (0, 1e3),
    "OptimConfig.clip": (0, 1e30),
    "OptimConfig.ema": (0, 1 - 1e-12),
    "OptimConfig.accumulate": (1, _SIZE),
    "OptimConfig.ema_power": (_TINY, 100),
    "OptimConfig.ema_start": (0, _INT),
    "OptimConfig.decay_share": (0, 1),
    "LearningRateGroup.factor": (0, _FACTOR),
    "CheckpointConfig.every": (1, _INT),
    "CheckpointConfig.keep": (1, _INT),
    "GuardConfig.max_consecutive": (1, _INT),
    "GuardConfig.max_rollbacks": (0, _INT),
    "GuardConfig.recovery": (0, _INT),
    "TelemetryConfig.every": (0, _INT),
    "EvalConfig.every": (0, _INT),
    "EvalConfig.batches": (0, _INT),
    "EvalConfig.samples": (0, _INT),
    "EvalConfig.captions": (0, _INT),
    "EvalConfig.guidances": (-_FACTOR, _FACTOR),
    "TrackersConfig.pictures": (0, 64),
    "MeshConfig.slice": (0, _SIDE),
    "MeshConfig.data": (-1, _SIZE),
    "MeshConfig.fsdp": (-1, _SIZE),
    "MeshConfig.expert": (-1, _SIZE),
    "MeshConfig.context": (-1, _SIZE),
    "MeshConfig.tensor": (-1, _SIZE),
}
ANY: Range = (-_INT, _INT)  # for a field without a row


def check_number(where: str, field: str, value: float) -> None:
    """Refuses a number that the `field` ('Class.field') of an experiment cannot have.

    Raises:
      UsageError: beginning with `where`, the name that the user knows.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} must be a finite number, not {value}")
    least, most = RANGES.get(field, ANY)
    if not least <= value <= most:
        bound = f"at least {_number(least)}" if value < least else f"at most {_number(most)}"
        raise UsageError(f"{where} must be {bound}, not {_number(value)}")


def _number(value: Any) -> str:
    """A number as text that fits on one line, however many digits a file gave it."""
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else f"{'-' if value < 0 else ''}a number of more than 15 digits"
    return f"{value:g}"
