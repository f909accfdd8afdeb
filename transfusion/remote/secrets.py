"""Refuses secrets on command lines, where every user of the machine, and the run's own records, can read them."""

import re
from collections.abc import Sequence

from transfusion.errors import UsageError

_NAME = re.compile(
    r"--?(?P<name>[\w.]*(api_?key|access_?key|secret|password|passwd|(hf|hub|auth|access|bearer|api|wandb)_?token))\b",
    re.I,
)
# What well-known tokens look like, and a password inside of a URL.
_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|://[^/@\s:]+:[^/@\s]+@|[=:,]AKIA[A-Z0-9]{16}\b")
_WHERE = "set it in the environment (HF_TOKEN, WANDB_API_KEY, MLFLOW_TRACKING_PASSWORD) or a login's own file"


def check_no_secrets(argv: Sequence[str]) -> None:
    """Refuses an argument that gives a key, a token or a password; the message does not repeat it.

    Raises:
      UsageError: naming the flag.
    """
    for argument in argv[1:]:
        if found := _NAME.match(argument):
            name = found["name"]
        elif _VALUE.search(argument):
            name = argument.partition("=")[0].lstrip("-") if argument.startswith("--") and "=" in argument else ""
            name = "an argument" if not name or _VALUE.search(name) else name
        else:
            continue
        raise UsageError(f"{name}: a secret on a command line can be read by everyone on the machine: {_WHERE}")
