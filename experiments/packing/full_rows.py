"""How full are the rows of a mixture of all kinds of records, and which budgets make them full?

  python experiments/packing/full_rows.py                                      # minutes on a CPU core
  python experiments/packing/full_rows.py --omni data/omni_digits/train.jsonl      # with the real omni_digits

Makes the records of `mixture.py`, and measures the mean tokens of a record in each stream. A row for D records has D
times these as its budgets, rounded up to whole items. Prints the share of each budget that packing fills, as a training
run writes it (`Pipeline.stats()['efficiency']`), with `open_rows` of 8 and 32, for the whole mixture and for one
without the texts that may be cut. Counts depend on nothing but the seed. Writes results.json beside this file.
"""

import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Mapping

from absl import app, flags

sys.path.append(str(pathlib.Path(__file__).parent))

import mixture

from transfusion.codecs import CodecConfig
from transfusion.data.config import DataConfig
from transfusion.data.documents import choose_document
from transfusion.data.examples import make_example
from transfusion.data.pipeline import Pipeline
from transfusion.data.records import Records
from transfusion.latents import Codecs, open_codec

HERE = pathlib.Path(__file__).resolve().parent
CODECS = Codecs(open_codec(CodecConfig()), {kind: open_codec(config) for kind, config in mixture.CODECS.items()})
# Tokens of an item where all items are alike: budgets are multiples of it. The last is a share of further items, so
# that rows of many small images do not run out of places for them.
WHOLE = {"text": 1, "image": 4, "video": 64, "sound": 6, "image:items": 1}
LARGE = {"text": 4096, "image": 4096, "video": 256, "sound": 24, "image:items": 64}  # any record fits
SPARE_ITEMS = 1.3

FLAGS = flags.FLAGS


def mean_cost(data: DataConfig, records: int = 3000, seed: int = 0) -> dict[str, float]:
    """Tokens of a record in each stream, and images, on average over the first records of the mixture."""
    spec, total = mixture.spec(LARGE), dict.fromkeys(WHOLE, 0)
    mixed = Records(data, seed)
    for i in range(records):
        example = make_example(mixed[i], choose_document(mixed[i], data, (seed, i)), spec, CODECS.encode)
        for name, count in example.cost.items():
            total[name] += count
    return {name: count / records for name, count in total.items()}


def budgets(cost: Mapping[str, float], documents: int) -> dict[str, int]:
    """The budgets of a row for so many records: so many times the mean, rounded up to whole items."""
    found = {name: math.ceil(cost[name] * documents / whole) * whole for name, whole in WHOLE.items()}
    return found | {"image:items": math.ceil(cost["image:items"] * documents * SPARE_ITEMS)}


def fill(data: DataConfig, sizes: Mapping[str, int], records: int, rows: int = 4) -> dict:
    """What `Pipeline.stats` says of batches of so many rows, once so many records have been read."""
    with Pipeline(data, mixture.spec(sizes), rows, encode=CODECS.encode) as pipeline:
        while True:
            next(pipeline)
            if (found := pipeline.stats())["records"] >= records:
                return found


def main(argv) -> None:
    del argv
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        mixture.write(pathlib.Path(folder))
        data = mixture.data(pathlib.Path(folder), FLAGS.omni)
        for name, without in (("all kinds", ()), ("no texts", ("texts",))):
            kept = mixture.changed(data, without)
            cost = mean_cost(kept)
            results[name] = {"mean cost of a record": {stream: round(count, 2) for stream, count in cost.items()}}
            for documents in (13, 26, 52):
                for open_rows in (8, 32):
                    sizes = budgets(cost, documents)
                    found = fill(mixture.changed(kept, open_rows=open_rows), sizes, FLAGS.records)
                    shares = {stream: round(share, 3) for stream, share in found["efficiency"].items()}
                    results[name][f"{documents} records a row, open_rows={open_rows}"] = {
                        "budgets": sizes, "filled": shares, "unusable": found["bad"],
                    }  # fmt: skip
                    print(f"{name}, {documents} records a row, open_rows={open_rows}: {shares}", flush=True)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("omni", "", "The train.jsonl of omni_digits; '': pairs of the same media.")
    flags.DEFINE_integer("records", 4000, "Records that each measurement reads.")
    app.run(main)
