"""Trains every system from scratch on the digits, with the same data, steps and rows per step."""

import pathlib

from transfusion.sweep import RunOf

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# All configs are based on `configs/digits.py`; only the system differs. Runs that others begin with come before them,
# and their steps are not counted for the others: the text model that some freeze, the tower and the first stage of
# LLaVA, the tower and the decoder of BLIP3-o and of RAE, and the two codecs of the systems that draw codes.
MEMBERS = {
    "transfusion": "digits.py",
    "ddpm": "digits.py:ddpm",
    "unet": "digits.py:unet",
    "mot": "mot.py",
    "mot_post_norm": "mot.py:post",
    "experts": "experts.py",
    "experts_mot": "experts.py:mot",
    "lmfusion_text": "lmfusion.py:text",
    "lmfusion": "lmfusion.py",
    "dit_block": "dit.py",
    "mmdit_block": "dit.py:mmdit",
    "bagel": "bagel.py",
    "mogao": "mogao.py",
    "showo2": "showo2.py",
    "janusflow": "janusflow.py",
    "janus_understanding": "janusflow.py:understanding",
    "fuyu": "fuyu.py",
    "contrastive": "contrastive.py",
    "contrastive_siglip": "contrastive.py:siglip",
    "llava_projector": "llava.py:projector",
    "llava": "llava.py",
    "llada": "llada.py",
    "resampler": "resampler.py",
    "flamingo": "resampler.py:flamingo",
    "select": "resampler.py:select",
    "tuna2": "tuna2.py",
    "rae_codec": "autoencoder_semantic.py",
    "rae": "rae.py",
    "nextstep": "nextstep.py",
    "mar": "nextstep.py:mar",
    "metaqueries": "connector.py",
    "metaqueries_cross": "connector.py:cross",
    "qwen_image": "connector.py:qwen",
    "semantic_autoencoder": "autoencoder_semantic.py",
    "blip3o": "connector.py:blip3o",
    "omnigen": "omnigen.py",
    "vq_digits": "vq_digits.py",
    "vq_digits_multiscale": "vq_digits.py:multiscale",
    "showo": "showo.py",
    "dimoo": "llada.py:dimoo",
    "var": "var.py",
    "janus": "janus.py",
    "chameleon": "chameleon.py",
    "emu3": "emu3.py",
    "unitoken": "unitoken.py",
    "llamagen": "llamagen.py",
}
TEXT = {"init.path": RunOf("lmfusion_text")}  # systems that begin with the frozen text model
TOWER = {"init.others.tower.path": RunOf("contrastive")}
CODES = {"codec.path": RunOf("vq_digits")}
CHANGES = {
    "lmfusion": TEXT,
    "llava_projector": TEXT | TOWER,
    "resampler": TEXT | TOWER,
    "flamingo": TEXT | TOWER,
    "rae_codec": {"init.path": RunOf("contrastive")},
    "rae": {"codec.path": RunOf("rae_codec")},
    "llava": {"init.path": RunOf("llava_projector")},
    "metaqueries": TEXT,
    "metaqueries_cross": TEXT,
    "qwen_image": TEXT,
    "semantic_autoencoder": {"init.path": RunOf("janus_understanding")},
    "blip3o": TEXT | {"codec.path": RunOf("semantic_autoencoder")},
    "var": {"codec.path": RunOf("vq_digits_multiscale"), "init.path": RunOf("vq_digits_multiscale")},
    "showo": CODES | {"init.path": RunOf("vq_digits")},
    "dimoo": CODES | {"init.path": RunOf("vq_digits")},
} | dict.fromkeys(("janus", "chameleon", "emu3", "unitoken", "llamagen"), CODES)


def get_sweep():
    """(name, config file, fields that differ)."""
    return [(name, str(CONFIGS / config), CHANGES.get(name, {})) for name, config in MEMBERS.items()]
