"""Takes a new run's parameters from other runs, to fine-tune one, or to add modalities to a language model.

To keep the language model as it is (LMFusion, arXiv 2412.15188, section 3; 'asynchronous training'), set `init.path` to
its run, and freeze its paths with `optim.groups`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import jax
from absl import logging

from transfusion.errors import UsageError
from transfusion.model.names import by_path, covered, nearest_path
from transfusion.model.parameters import Params
from transfusion.running.restore import restore_leaves, saved_shapes


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where a new run's parameters come from. A run that continues a checkpoint of its own ignores it.

    Attributes:
      path: the workdir of a run, or of imported weights (`transfusion.interop`): parameters of the same path are taken,
        averaged ones where the run keeps an average; the rest is drawn at random, as everything is if `path` is ''.
      copy: pairs (ours, theirs): a path that the regular expression `ours` covers from its start (see
        `transfusion.model.names.covered`) is taken from the path with `theirs` in its place, in which '\\1' stands
        for the first group. ('trunk/blocks/image', 'trunk/blocks/text') starts an expert as a copy of another;
        ('tower', '') takes a part from a workdir that holds nothing else, such as an imported vision tower.
      fresh: a regular expression: the paths that it covers from their start are drawn at random all the same.
      others: further runs by a name of your own. Each gives, in this order, what it has of the parameters that no run
        before it gave: a language model from one run and the vision tower that it learns to read from another (LLaVA).
    """

    path: str = ""
    copy: tuple[tuple[str, str], ...] = ()
    fresh: str = ""
    others: Mapping[str, "InitConfig"] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if (self.copy or self.fresh) and not self.path:
            raise UsageError("init.copy and init.fresh choose parameters of another run: set init.path to its workdir")
        try:
            re.compile(self.fresh)
        except re.error as error:
            raise UsageError(f"init.fresh: {self.fresh!r} is no regular expression: {error}") from error
        for ours, theirs in self.copy:
            try:
                re.sub(ours, theirs, "")
            except re.error as error:
                raise UsageError(
                    f"init.copy: {(ours, theirs)} is no pair of a regular expression and a path: {error}"
                ) from error
        for name, other in self.others.items():
            if not other.path or other.others:
                raise UsageError(f"init.others.{name}: it needs a path, and has no `others` of its own")


def from_run(config: InitConfig, wanted: Params) -> dict[str, jax.Array]:
    """Reads the parameters that this run starts from, by their path in this model; a process reads its own parts only.

    Args:
      config: without a path, and without others, there are no such parameters.
      wanted: ShapeDtypeStructs with the shardings of this run's parameters.

    Raises:
      UsageError: if a run has no intact checkpoint or nothing to take, if a shape differs, or if a pair of `copy`
        gives no parameter.
    """
    ours, result = by_path(wanted), {}
    for one in (config, *config.others.values()):
        if one.path:
            result |= _from_one(one, {path: leaf for path, leaf in ours.items() if path not in result})
    return result


def _from_one(config: InitConfig, ours: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The parameters that one run gives, of those in `ours`."""
    step, saved = saved_shapes(config.path)
    part = "ema" if jax.tree.leaves(saved.get("ema")) else "params"
    theirs = by_path(saved.get(part, {}))
    sources = _sources(config, ours, theirs)
    for path, source in sources.items():
        here, there = tuple(ours[path].shape), tuple(theirs[source].shape)
        if here != there:
            name = path if path == source else f"{path} (there {source})"
            raise UsageError(f"init.path {config.path}: {name} is {list(there)} there and {list(here)} here")
    target: Params = {}
    for path, source in sources.items():
        *above, last = source.split("/")
        node = target
        for name in above:
            node = node.setdefault(name, {})
        node[last] = ours[path]
    read = by_path(restore_leaves(config.path, step, {part: target})[part])
    copied = sum(path != source for path, source in sources.items())
    fresh = [path for path in ours if path not in sources]
    logging.info(
        "parameters from %s at step %d: %d taken, %d copied, %d fresh%s",
        config.path, step, len(sources) - copied, copied, len(fresh), f" ({', '.join(fresh)})" if fresh else "",
    )  # fmt: skip
    return {path: read[source] for path, source in sources.items()}


def _sources(config: InitConfig, ours: Iterable[str], theirs: Mapping) -> dict[str, str]:
    """Our path -> the path in the other run, for all parameters that can be taken."""
    ours = [path for path in ours if not (config.fresh and covered(config.fresh, path))]
    result = {path: path for path in ours if path in theirs}
    used = set()
    for path in ours:
        for pair in config.copy:
            match = covered(pair[0], path)
            source = match and (match.expand(pair[1]) + path[match.end() :]).removeprefix("/")
            if source in theirs:
                result[path] = source
                used.add(pair)
                break
    for pair in config.copy:
        if pair not in used:
            raise UsageError(
                f"init.copy: the pair {pair} gives no parameter of {config.path}{nearest_path(pair[1], theirs)}"
            )
    if not result:
        raise UsageError(f"init.path {config.path}: none of its parameters is one of this model")
    return result


def replace(params: Params, given: Mapping[str, jax.Array], above: str = "") -> Params:
    """Replaces the parameters at the paths of `given`."""
    return {
        name: replace(child, given, f"{above}{name}/") if isinstance(child, Mapping) else given.get(above + name, child)
        for name, child in params.items()
    }
