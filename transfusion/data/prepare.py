"""The program `transfusion.prepare` under the name that it had first."""

import runpy

if __name__ == "__main__":
    runpy.run_module("transfusion.prepare", run_name="__main__", alter_sys=True)
