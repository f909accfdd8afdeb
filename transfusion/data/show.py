"""The program `transfusion.evaluation.show` under the name of what it shows: a source of data."""

import runpy

if __name__ == "__main__":
    runpy.run_module("transfusion.evaluation.show", run_name="__main__", alter_sys=True)
