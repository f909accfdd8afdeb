"""Writes a config for a folder of images that nobody has looked at yet: `transfusion new --images FOLDER`.

`folder` finds the images and their captions; `fit` chooses sizes, budgets, the batch and the model, by packing the
records themselves; `write` writes the config and says why it is as it is.
"""

from transfusion.new.fit import Plan, plan
from transfusion.new.folder import Found, look
from transfusion.new.write import config_text

__all__ = ["Found", "Plan", "config_text", "look", "plan"]
