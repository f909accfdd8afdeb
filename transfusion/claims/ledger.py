"""The runs of claims, each known by the digest of its config and shared by all claims, and the work through them."""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from absl import logging

from transfusion.claims.claim import Claim
from transfusion.config import Experiment
from transfusion.errors import UsageError
from transfusion.sweep.grids import Entry, RunOf
from transfusion.sweep.members import Member, make_members, with_changes
from transfusion.sweep.pins import Slot
from transfusion.sweep.process import is_finished
from transfusion.sweep.queue import Row, run_all


@dataclasses.dataclass(frozen=True)
class Claimed:
    """The runs of a claim at one size.

    Attributes:
      systems: {system: its members, one for each seed}.
      parts: the members that these begin with.
    """

    claim: Claim
    size: str
    systems: Mapping[str, tuple[Member, ...]]
    parts: tuple[Member, ...]

    @property
    def members(self) -> tuple[Member, ...]:
        """All runs: parts first, then one seed of all systems after the other."""
        seeds = zip(*self.systems.values(), strict=True)
        return (*self.parts, *(member for seed in seeds for member in seed))

    @property
    def missing(self) -> list[Member]:
        """Runs that are not finished."""
        return [member for member in self.members if not is_finished(member)]


@functools.cache
def _config(path: str) -> Experiment:
    return with_changes(path, {})


def runs_of(claim: Claim, size: str, store: str | os.PathLike, fields: Mapping[str, object] = {}) -> Claimed | None:
    """The runs of a claim in a store; None if it does not have this size. `fields` are set in all runs.

    Raises:
      UsageError: naming the system and the field that cannot work.
    """
    if size not in claim.sizes:
        return None
    entries = [_entry(claim, name, size) for name in claim.parts]
    entries += [_entry(claim, name, size, seed) for name in claim.systems for seed in range(claim.seeds)]
    made = make_members(entries, store, fields, store, f"claim {claim.name}")
    measures = tuple(dict.fromkeys(test.measure for test in claim.tests if test.measure))
    found = {member.name: member for member in made}
    systems = {
        name: tuple(
            dataclasses.replace(found[_name(claim, name, seed)], measures=measures) for seed in range(claim.seeds)
        )
        for name in claim.systems
    }
    mine = {_name(claim, part) for part in claim.parts}
    return Claimed(claim, size, systems, tuple(member for member in made if member.name in mine))


def _name(claim: Claim, system: str, seed: int | None = None) -> str:
    return f"{claim.name}.{system}" + ("" if seed is None else f".seed_{seed}")


def _entry(claim: Claim, name: str, size: str, seed: int | None = None) -> Entry:
    """The member of a system with a seed, or of a part, which has none."""
    system = claim.parts[name] if seed is None else claim.systems[name]
    of_all = {} if seed is None else claim.sizes[size] | {"seed": seed}
    changes = {**of_all, **system.changes, **system.sizes.get(size, {})}
    changes.pop("config", None)  # a config of this size
    for field, other in system.runs.items():
        changes[field] = RunOf(_name(claim, other, seed if other in claim.systems else None))
    try:
        config = _config(claim.config(system, size))
    except UsageError as error:
        raise UsageError(f"claim {claim.name}, {name}: {error}") from error
    return _name(claim, name, seed), config, changes


def shared(claimed: Sequence[Claimed]) -> list[Member]:
    """The runs of several claims, each once; a run that several claims measure has the measures of all."""
    first: dict[str, Member] = {}
    names: dict[str, str] = {}
    for one in claimed:
        for member in one.members:
            known = first.setdefault(member.digest, member)
            names[member.name] = known.name
            measures = tuple(dict.fromkeys((*known.measures, *member.measures)))
            first[member.digest] = dataclasses.replace(known, measures=measures)
    return [
        dataclasses.replace(member, needs=tuple(dict.fromkeys(names[name] for name in member.needs)))
        for member in first.values()
    ]


def work(
    claimed: Sequence[Claimed],
    places: Sequence[Slot],
    judges: str | os.PathLike,
    done: Callable[[Claimed, Row], None] = lambda one, row: None,
) -> list[Row]:
    """Works through all runs of claims, those of the first claim first.

    Args:
      done: is called for each claim of a run that has ended, with its row.
    """
    members = shared(claimed)
    by_name, ended = {member.name: member.digest for member in members}, itertools.count(1)

    def report(row: Row) -> None:
        said = f"failed: {row['error']}" if row["error"] else f"{row['seconds']:.0f} s of training"
        logging.info("%d of %d: %s, %s", next(ended), len(members), row["name"], said)
        for one in claimed:
            if any(member.digest == by_name[row["name"]] for member in one.members):
                done(one, row)

    return run_all(members, places, pathlib.Path(judges), report)
