"""Every system that trains here, from scratch on the digits: the same data, steps and rows per step."""

import pathlib

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# `configs/digits.py` is the common base of all; nothing but the system differs. The frozen text model of LMFusion is
# trained first, on the same captions, and its steps are not counted for LMFusion.
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
}


def get_sweep():
    """(name, config file, fields that differ)."""
    changes = {"lmfusion": {"init.path": "runs/family_on_digits/lmfusion_text"}}
    return [(name, str(CONFIGS / config), changes.get(name, {})) for name, config in MEMBERS.items()]
