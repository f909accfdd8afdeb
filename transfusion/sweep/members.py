"""The members of a sweep: each is one experiment and the folder of its run."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from transfusion.config import Experiment, from_config
from transfusion.config.explain import load_config, walk
from transfusion.errors import UsageError, nearest
from transfusion.model.unified import parameter_count
from transfusion.programs import call_in_file
from transfusion.sweep.grids import Entry, RunOf
from transfusion.tasks import make_task
from transfusion.workdir.digest import digest
from transfusion.workdir.portable import absolute


@dataclasses.dataclass(frozen=True)
class Member:
    """One experiment of a sweep and its workdir.

    Attributes:
      needs: the names of members whose runs it begins with or encodes with.
      digest: in a store, the digest by which its run is known; else ''.
      measures: fields of evaluation.json that must be there, so that an evaluation by an earlier version is repeated.
    """

    name: str
    experiment: Experiment
    workdir: pathlib.Path
    needs: tuple[str, ...] = ()
    digest: str = ""
    measures: tuple[str, ...] = ()

    @property
    def log(self) -> pathlib.Path:
        """The file that gets the output of its processes."""
        return self.workdir / "sweep.log"

    @functools.cached_property
    def parameters(self) -> int:
        return parameter_count(make_task(self.experiment).template.shapes)


def read_sweep(
    path: str, workdir: str | os.PathLike, fields: Mapping[str, Any], store: str | os.PathLike | None = None
) -> list[Member]:
    """The members of a sweep file; `fields` ({'data.data_dir': ...}) are set in all of them.

    Every config is checked here, before any time is spent.

    Args:
      store: a folder that other sweeps share, in which a run is known by the digest of its config; without one, a
        member's run is in `workdir`/name.

    Raises:
      UsageError: naming the member that cannot work.
    """
    sweep = call_in_file(path, "get_sweep", "sweep file")
    if isinstance(sweep, Mapping):
        sweep = [(name, config, {}) for name, config in sweep.items()]
    members = make_members(sweep, workdir, fields, store, path)
    for member in members:
        try:
            make_task(member.experiment)
        except UsageError as error:
            raise UsageError(f"{path}, {member.name}: {error}") from error
    if not members:
        raise UsageError(f"{path}: get_sweep() names no experiment")
    return members


def make_members(
    entries: Sequence[Entry],
    workdir: str | os.PathLike,
    fields: Mapping[str, Any] = {},
    store: str | os.PathLike | None = None,
    where: str = "sweep",
) -> list[Member]:
    """The members of entries, those first that others need; else in their order. `where` begins error messages.

    Raises:
      UsageError: if a config, a field, a name or the run of another member is wrong.
    """
    given: dict[str, Entry] = {}
    for entry in entries:
        name = entry[0]
        if name in given or pathlib.Path(name).name != name:
            raise UsageError(f"{where}: {name!r} cannot be the name of a member's folder: use plain names that differ")
        given[name] = entry
    made: dict[str, Member] = {}
    folders = {absolute(os.path.join(workdir, name)): RunOf(name) for name in given} if store else {}

    def make(name: str, path: tuple[str, ...]) -> None:
        if name in made:
            return
        if name in path:
            raise UsageError(f"{where}: {' begins with '.join((*path, name))}: none of them can be the first")
        _, config, changes = given[name]
        # In a store, the folder that another member would have without one is no folder, but means its run.
        changes = {k: folders.get(absolute(v), v) if isinstance(v, str) else v for k, v in changes.items()}
        needs = [value.member for value in changes.values() if isinstance(value, RunOf)]
        for other in needs:
            if other not in given:
                raise UsageError(f"{where}, {name}: there is no member {other!r}{nearest(other, given)}")
            make(other, (*path, name))
        changes = {k: os.fspath(made[v.member].workdir) if isinstance(v, RunOf) else v for k, v in changes.items()}
        try:
            experiment = with_changes(config, {**changes, **fields})
        except UsageError as error:
            raise UsageError(f"{where}, {name}: {error}") from error
        found = digest(experiment, {os.fspath(m.workdir): m.digest for m in made.values()}) if store else ""
        folder = pathlib.Path(store) / found if store else pathlib.Path(workdir) / name
        made[name] = Member(name, experiment, folder, tuple(dict.fromkeys(needs)), found)

    for name in given:
        make(name, ())
    return _with_paths_as_needs(list(made.values()))


def _with_paths_as_needs(members: list[Member]) -> list[Member]:
    """Members whose config names the folder of an earlier member need it, too."""
    folders, found = {absolute(os.fspath(member.workdir)): member.name for member in members}, []
    earlier: set[str] = set()
    for member in members:
        named = {folders.get(absolute(path)) for path in runs_of(member.experiment) if path}
        needs = dict.fromkeys((*member.needs, *sorted((named & earlier) - {member.name})))
        found.append(dataclasses.replace(member, needs=tuple(needs)))
        earlier.add(member.name)
    return found


def runs_of(experiment: Experiment) -> list[str]:
    """The paths of runs that an experiment begins with or encodes with; '' for none."""
    init = experiment.init
    codecs = [experiment.codec, *experiment.codecs.values()]
    return [init.path, *(other.path for other in init.others.values()), *(codec.path for codec in codecs)]


def with_changes(config: Any, changes: Mapping[str, Any]) -> Experiment:
    """The experiment of a config file (with ':form' if it has one) or of a config, with some fields changed.

    Fields are named as on the command line, such as 'model.width' or 'layout.image/context[0].time_low'.

    Raises:
      UsageError: if a field does not exist, or its value cannot work.
    """
    if isinstance(config, str):
        config = load_config(*config.split(":", 1))
    tree = _tables(config)
    for field, value in changes.items():
        walk(tree, f"config.{field}")
        node, path = tree, [int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", field)]
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value
    return from_config(tree)


def _tables(value: Any) -> Any:
    """A config as tables and lists of its own, which can be changed."""
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {name: _tables(inner) for name, inner in value.items()}
    return [_tables(inner) for inner in value] if isinstance(value, (list, tuple)) else value
