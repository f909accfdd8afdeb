"""Several experiments and one table of their scores: `python -m transfusion.sweep FILE --workdir W`.

- `grids` has the words of a sweep file: `grid` and `seeds` write many members in a line each, and `RunOf` names the run
  of another member.
- `members` reads a sweep file. A member is one experiment and its folder.
- `process` trains and evaluates one member, in processes of its own; `locks` lets only one do so at a time.
- `queue` works through members, several at a time; `pins` gives each its cores or its accelerator.
- `records` keeps what runs have measured, so that a verdict needs no weights.
- `forecast` tells FLOPs and hours beforehand; `page` shows all members on one page.
"""

from transfusion.sweep.grids import Entry, RunOf, grid, seeds

__all__ = ["Entry", "RunOf", "grid", "seeds"]
