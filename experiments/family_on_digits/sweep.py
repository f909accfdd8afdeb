"""Every system that trains here, from scratch on the digits: the same data, steps and rows per step."""

import pathlib

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# `configs/digits.py` is the common base of all; nothing but the system differs. The frozen text model is trained
# first, on the same captions, and its steps are not counted for those that take it.
MEMBERS = {
    "transfusion": "digits.py",
    "mot": "mot.py",
    "mot_post_norm": "mot.py:post",
    "lmfusion_text": "lmfusion.py:text",
    "lmfusion": "lmfusion.py",
    "dit_block": "dit.py",
    "mmdit_block": "dit.py:mmdit",
    "bagel": "bagel.py",
    "mogao": "mogao.py",
    "showo2": "showo2.py",
    "janusflow": "janusflow.py",
    "janus_understanding": "janusflow.py:understanding",
    "metaqueries": "connector.py",
    "metaqueries_cross": "connector.py:cross",
    "qwen_image": "connector.py:qwen",
    "omnigen": "omnigen.py",
    "chameleon": "chameleon.py",
    "chameleon_mot": "chameleon.py:mot",
    "emu3": "emu3.py",
    "unitoken": "unitoken.py",
}
# These begin with the frozen text model.
FROZEN = ("lmfusion", "metaqueries", "metaqueries_cross", "qwen_image")


def get_sweep():
    """(name, config file, fields that differ)."""
    text = {"init.path": "runs/family_on_digits/lmfusion_text"}
    return [(name, str(CONFIGS / config), text if name in FROZEN else {}) for name, config in MEMBERS.items()]
