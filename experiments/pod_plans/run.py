"""Makes the plans of this folder's README.md, one after the other. Plans in results.json are not compiled again.

python experiments/pod_plans/run.py          # needs no TPU, but libtpu: pip install 'transfusion[tpu]'
python experiments/pod_plans/run.py --show   # prints the tables of what is there
"""

import json
import pathlib
import sys

import jax

from transfusion import plan
from transfusion.config import from_config
from transfusion.config.explain import load_config
from transfusion.running.chips import GIB, parse_topology

RESULTS = pathlib.Path(__file__).with_name("results.json")
CONFIGS = {"transfusion 7B": ("configs/transfusion_paper.py", "7B"), "bagel 7B+7B": ("configs/bagel.py", "7b")}
# (part, config, topology, overrides). Each device has one row of 4,096 tokens per microbatch, on v6e two.
ENTRIES = [
    ("pods", "transfusion 7B", "v5p:8x8x8", {}),
    ("weak scaling", "transfusion 7B", "v5p:4x4x4", {"batch_size": 64}),
    ("pods", "bagel 7B+7B", "v5p:8x8x8", {}),
    ("pods", "transfusion 7B", "v6e:16x16", {}),
    ("pods", "transfusion 7B", "v5e:16x16", {"optim.accumulate": 2}),
    ("pods", "bagel 7B+7B", "v5e:16x16", {"optim.accumulate": 2}),
    ("pods", "bagel 7B+7B", "v6e:16x16", {}),
    ("weak scaling", "transfusion 7B", "v5p:4x8x8", {"batch_size": 256}),
    ("weak scaling", "transfusion 7B", "v5p:4x4x8", {"batch_size": 128}),
]


def key(part: str, config: str, topology: str, fields: dict) -> str:
    return ", ".join([part, config, topology, *(f"{name}={value}" for name, value in fields.items())])


def measure(config: str, topology: str, fields: dict) -> dict:
    path, form = CONFIGS[config]
    loaded = load_config(path, form)
    loaded.update_from_flattened_dict(fields)
    compilation = plan.Compilation(sampler=False, confirm=False)
    return plan.plan(from_config(loaded), parse_topology(topology), compilation)


def show(results: dict) -> None:
    for config in CONFIGS:
        found = [results[k] for entry in ENTRIES if entry[:2] == ("pods", config) and (k := key(*entry)) in results]
        print(f"\n{config}\n\n{plan.plan_table(found)}")
    print("\nWeak scaling, transfusion 7B, a row per device\n")
    print("| devices | parameters MiB | optimizer MiB | temporaries GiB | sent GB per device | all-gather | the rest |")
    print("|" + "---|" * 7)
    scaling = [e for e in ENTRIES if e[0] == "weak scaling" or e[1:3] == ("transfusion 7B", "v5p:8x8x8")]
    for result in sorted((results[k] for e in scaling if (k := key(*e)) in results), key=lambda r: r["devices"]):
        step, state = result["step"], result["state"]
        gathered = step["collectives"].get("all-gather", {"bytes": 0.0})["bytes"]
        sizes = (state["parameters"] / 2**20, state["optimizer"] / 2**20, step["temporaries"] / GIB)
        sent = (step["bytes_sent"], gathered, step["bytes_sent"] - gathered)
        cells = [str(result["devices"]), *(f"{x:.1f}" for x in sizes), *(f"{x / 1e9:.1f}" for x in sent)]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "--show" not in sys.argv:
        for part, *entry in ENTRIES:
            name = key(part, *entry)
            if name not in results:
                results[name] = measure(*entry)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                print(name, f"{results[name]['step']['compile_seconds']} s", flush=True)
    show(results)


if __name__ == "__main__":
    main()
