"""Scaling laws of every modality from a table of losses, or from a grid of trainings: `python -m transfusion.scaling`.

- `points` holds measurements, and reads them from a CSV; `grid` trains the runs of a grid file and measures them.
- `law` is L(N, D) of one modality and its fit; `fits` fits all modalities of a system, with bootstrap intervals.
- `isoflop` has the best size for a budget by parabolas.
- `study` puts all of this together and predicts a held-out run; `figure` draws its page, and `table` prints it.
"""

from transfusion.scaling.grid import Grid, Run

__all__ = ["Grid", "Run"]
