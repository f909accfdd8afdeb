"""The commands of `transfusion`: each is a module that `python -m` runs, too. To add a command, add a row.

This module imports none of them, so that a list of commands is there at once.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      module: what runs it.
      help: one line.
      first: arguments that stand before those of the user.
    """

    module: str
    help: str
    first: tuple[str, ...] = ()


# Title of a group -> its commands by name.
GROUPS: dict[str, dict[str, Command]] = {
    "begin": {
        "demo": Command("transfusion.demo", "Opens a page in the browser on which a trained model draws and answers."),
        "new": Command("transfusion.new", "Looks at a folder of images and writes a config that fits it."),
        "prepare": Command("transfusion.prepare", "Writes data sets for training."),
        "show": Command("transfusion.data.show", "Shows records as training reads them, in an HTML page."),
    },
    "train": {
        "train": Command("transfusion.train", "Trains a model, or continues a run; --dry_run tells what it would do."),
        "config": Command("transfusion.commands.config", "Prints, compares or checks configs."),
        "plan": Command("transfusion.plan", "Tells memory, FLOPs and time of a training on devices that you lack."),
        "sweep": Command("transfusion.sweep", "Trains and evaluates several configs, and prints a table."),
        "scaling": Command("transfusion.scaling", "Fits scaling laws to a table of losses, or to a grid of trainings."),
        "claims": Command("transfusion.claims", "Tests claims of the literature, each with a verdict and an interval."),
        "cache_latents": Command("transfusion.cache_latents", "Encodes the data of a config once, ahead of training."),
    },
    "use": {
        "sample": Command("transfusion.sample", "Draws, captions and writes with a trained run."),
        "chat": Command("transfusion.commands.chat", "Talks to a trained run in the terminal."),
        "evaluate": Command("transfusion.evaluate", "Measures a run: every score with its interval."),
        "adapters": Command("transfusion.adapters", "Draws and answers for public benchmarks and their scorers."),
        "report": Command("transfusion.report", "Writes a page with the scores, curves and samples of a run."),
    },
    "share": {
        "import": Command("transfusion.interop", "Reads a released checkpoint into a run.", ("import",)),
        "export": Command("transfusion.interop", "Writes a run in the form of the released checkpoint.", ("export",)),
        "publish": Command("transfusion.hub", "Writes a run as a folder to share, or to a hub.", ("publish",)),
    },
    "set up": {
        "completion": Command("transfusion.commands.completion", "Prints a script that completes commands in a shell."),
    },
}
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}
