"""How the noise level of an item enters the model: a table, by the `time` of a stream; and who has a second time."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Time:
    """One way, or several together. Every field is independent of the others.

    Attributes:
      token: the item has a token for its noise level, before its patches.
      inside: that token lies in the bidirectional span of the patches.
      embedded: the embed takes the vector of the noise level: it adds it to its tokens, or has a coder that reads it.
      coder: the embed and the head are the halves of a coder (a U-Net or a ConvNeXt) that reads it.
      modulates: the vector scales and shifts the stream's tokens in every layer of its last trunk (adaLN).
    """

    token: bool = False
    inside: bool = False
    embedded: bool = False
    coder: bool = False
    modulates: bool = False


# Objectives whose items have a second number beside the noise level t: how far `ahead` of t the mean of the velocity
# reaches, from t to t + ahead; 0 asks for the velocity at t. It enters wherever the noise level does.
AHEAD = ("shortcut", "mean_flow")

TIMES: dict[str, Time] = {
    "none": Time(),
    "added": Time(embedded=True),
    "coder": Time(embedded=True, coder=True),
    "adaln": Time(modulates=True),
    "token": Time(token=True, inside=True),
    "token_before": Time(token=True),
    "token_adaln": Time(token=True, inside=True, modulates=True),
    "token_coder": Time(token=True, inside=True, embedded=True, coder=True),
}
