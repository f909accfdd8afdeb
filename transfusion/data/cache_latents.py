"""The program `transfusion.cache_latents` under the name that it had first."""

import runpy

if __name__ == "__main__":
    runpy.run_module("transfusion.cache_latents", run_name="__main__", alter_sys=True)
