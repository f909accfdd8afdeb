"""The ledger: claims of the literature as files, with verdicts: `python -m transfusion.claims list experiments/claims`.

- `claim` reads a claim's file: who claims what, the systems, what they have equal, the measure and its threshold.
- `ledger` makes the runs of all claims, each known by the digest of its config and shared, and works through them.
- `equal` counts FLOPs and parameters, refuses systems that differ in what they should have equal, and finds a width.
- `values` reads what runs have measured, `paired` has the statistics, and `verdict` applies them to a claim.
- `table` writes the lines and the README of all claims, `page` one page with values and curves.
"""
