"""The report of a run: one self-contained HTML file, readable without a network, in light and dark mode.

  python -m transfusion.report --workdir runs/digits

It draws its own samples from the newest intact checkpoint and takes scores from evaluation.json; what is missing is
said on the page.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags, logging

from transfusion import programs, storage
from transfusion.api import Run, load_run
from transfusion.config import to_json
from transfusion.errors import UsageError
from transfusion.evaluate import FIXED, HOW, rows, shown
from transfusion.evaluation import page, pictures
from transfusion.evaluation.charts import Line, line_chart
from transfusion.evaluation.examples import Examples, class_captions, read_examples
from transfusion.evaluation.results import read_evaluation
from transfusion.evaluation.scores import captioning
from transfusion.model.unified import parameter_count
from transfusion.objectives.continuous import BUCKETS
from transfusion.running import provenance
from transfusion.running.metrics import human, read_metrics
from transfusion.sampling.drawing import DRAWINGS
from transfusion.sampling.trajectory import Prompt, trajectory
from transfusion.sequence import Segment

PROMPTS = 12  # rows of the sample table
CAPTIONS = 36  # shown
SHOWN_STEPS = 8  # of the trajectory
ENOUGH = 2000  # real images read of each source to show and to caption


class Report:
    """Builds the sections from a run, its metrics and its evaluation."""

    def __init__(self, workdir: str | os.PathLike, seed: int = 0):
        self.workdir, self.seed = pathlib.Path(workdir), seed
        self.run: Run = load_run(workdir)
        self.experiment = self.run.experiment
        self.metrics = [row for row in read_metrics(self.workdir / "metrics.jsonl") if row["step"] <= self.run.step]
        self.evaluation, why = read_evaluation(self.workdir / "evaluation.json")
        self.evaluation_absent = why or f"Not evaluated yet: python -m transfusion.evaluate --workdir {workdir}"
        data = self.experiment.data
        self.real = read_examples(self.experiment.data.sources, data, ENOUGH)
        self.held_out = read_examples(self.experiment.eval.sources, data, ENOUGH)
        self.draws = self.run.sides == 2  # images

    def html(self) -> str:
        """The page."""
        sections = [
            ("scores", "Scores", self.scores()),
            ("curves", "Training", self.curves()),
            ("samples", "Images drawn from captions", self.samples()),
            ("trajectory", "From noise to an image", self.trajectory()),
            ("captions", "Captions of held-out images", self.captions()),
            ("mask", "What a packed row looks like", self.mask()),
            ("origin", "How these numbers were made", self.origin()),
        ]
        return page.page(f"Training report: {self.workdir.resolve().name}", self.header(), sections)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def header(self) -> str:
        model, streams = self.experiment.model, self.run.spec.streams
        kinds = " and ".join(streams)
        seconds, batch = training_seconds(self.metrics), self.experiment.batch_size
        count = parameter_count(self.run.task.template.shapes)
        facts = [
            ("Parameters", human(count), f"{model.layers} layers, width {model.width}"),
            ("Training steps", f"{self.run.step:,}", f"of {self.experiment.steps:,}, {batch} packed rows each"),
            ("Time in steps", _duration(seconds), "compilation, evaluation and checkpoints not counted"),
        ]  # fmt: skip
        lead = f"One Transformer over the streams {kinds}, trained on {', '.join(self.experiment.data.sources)}."
        return f'<p class="lead">{page.escape(lead)}</p>{page.cards([*self._headline(), *facts])}'

    def _headline(self) -> Iterator[tuple[str, str, str]]:
        result = self.evaluation or {}
        names = {
            "generation_accuracy": "Drawn as asked",
            "caption_accuracy": "Captions right",
            "text_bits_per_byte": "Text bits per byte",
        }
        for name, label in names.items():
            if score := result.get(name):
                value, interval = shown(name, score)
                small = f"{interval}, n\u00a0=\u00a0{score['count']}"
                if name == "generation_accuracy" and (judge := result.get("judge_accuracy")):
                    small += f"; the judge is right on {judge['value']:.1%} of real held-out images"
                yield label, value, small
        for group, label in (("training_names", "Names in training"), ("held_out_names", "Held-out names")):
            for kind, found in ((result.get("retrieval") or {}).get(group) or {}).items():
                value, interval = shown("retrieval", found["top5"])
                yield (
                    f"{label}, top five ({kind})",
                    value,
                    f"{interval}, n\u00a0=\u00a0{found['top5']['count']}",
                )

    def scores(self) -> str:
        if self.evaluation is None:
            return page.absent(self.evaluation_absent)
        found = rows(self.evaluation)
        main = [(name, score) for name, score in found if " by " not in name and not name.startswith(FIXED)]
        rest = [pair for pair in found if pair not in main]

        def lines(pairs):
            return ([page.escape(name), *map(page.escape, shown(name, s)), f"{s['count']:,}"] for name, s in pairs)

        head = ("Score", "Value", "95 % interval", "Count")
        parts = []
        if self.evaluation.get("step") != self.run.step:
            note = f"evaluation.json is of step {self.evaluation.get('step')}, the checkpoint of step {self.run.step}: "
            parts.append(page.absent(note + "evaluate again for scores of this checkpoint."))
        parts.append(page.html_table(head, lines(main)))
        parts += [page.absent(f"{name.replace('_', ' ')}: not measured, {why}") for name, why in self._reasons()]
        if rest:
            table = page.html_table(head, lines(rest))
            parts.append(f"<details><summary>By class, source and noise level</summary>{table}</details>")
        how = [(page.escape(k.replace("_", " ")), page.escape(v)) for k, v in HOW.items() if self.evaluation.get(k)]
        explained = "".join(f"<p><strong>{name}</strong>: {why}.</p>" for name, why in how)
        parts.append(f'<details><summary>What is counted</summary><div class="note">{explained}</div></details>')
        return "".join(parts)

    def _reasons(self) -> list[tuple[str, str]]:
        return [(str(k), str(v)) for k, v in (self.evaluation or {}).get("absent", {}).items()]

    def curves(self) -> str:
        if not self.metrics:
            return page.absent("metrics.jsonl has no rows: the losses of this run were not logged.")
        streams = [name for name in self.run.spec.streams if self._column(f"{name}_loss")]
        charts = []
        for i, name in enumerate(streams):
            lines = [
                self._line("training", f"{name}_loss", i),
                self._line("held out", f"held_out_{name}_loss", i, True),
            ]
            charts.append(line_chart(f"Loss of the {name} stream", lines, "step", "loss", log=True))
        charts += [self._by_noise(name) for name in streams if self._column(f"{name}_by_time_0")]
        norms = [self._line("all", "grad_norm", 0)]
        others = sorted(k for k in self.metrics[-1] if k.startswith("grad_norm_"))
        norms += [self._line(k.removeprefix("grad_norm_"), k, 1 + i) for i, k in enumerate(others)]
        charts.append(line_chart("Gradient norm, before clipping", norms, "step", "norm", log=True))
        charts += self._velocity()
        charts.append(
            line_chart("Speed", [self._line("all slots", "tokens_per_second", 2)], "step", "tokens per second")
        )
        last = self.metrics[-1]
        skipped, bad = last.get("skipped_updates") or 0, last.get("bad_records") or 0
        note = f"{skipped:.0f} updates skipped, {bad:.0f} records unusable."
        return f'<div class="charts">{"".join(charts)}</div><p class="note">{page.escape(note)}</p>'

    def _column(self, name: str) -> bool:
        return any(row.get(name) is not None for row in self.metrics)

    def _line(self, label: str, name: str, colour: int, dashed: bool = False) -> Line:
        used = [row for row in self.metrics if name in row]
        return Line(label, [row["step"] for row in used], [row[name] for row in used], dashed=dashed, colour=colour)

    def _by_noise(self, stream: str) -> str:
        """Loss against noise level, at a few moments of the training."""
        count = len(self.metrics)
        moments = sorted({min(count - 1, round(share * (count - 1))) for share in (0.0, 0.1, 0.3, 1.0)})
        centres = [(i + 0.5) / BUCKETS for i in range(BUCKETS)]
        lines = []
        for colour, row in enumerate(self.metrics[moment] for moment in moments):
            values = [row.get(f"{stream}_by_time_{i}") for i in range(BUCKETS)]
            lines.append(Line(f"step {row['step']}", centres, values, colour=colour))
        return line_chart(f"Loss of the {stream} stream by noise level", lines, "t (0 is noise, 1 is data)", "loss")

    def _velocity(self) -> Iterator[str]:
        for name, scores in ((self.evaluation or {}).get("velocity_loss") or {}).items():
            fixed = sorted((float(t), s) for t, s in scores.items() if t != "mean")
            columns = {key: [s[key] for _, s in fixed] for key in ("value", "low", "high")}
            line = Line(
                "held out, 95 % interval", [t for t, _ in fixed], columns["value"], columns["low"], columns["high"]
            )
            yield line_chart(
                f"Velocity loss of the {name} stream at fixed times",
                [line],
                "t (0 is noise, 1 is data)",
                "squared error",
            )

    # --- pictures -----------------------------------------------------------------------------------------------------

    def prompts(self) -> list[tuple[str, np.ndarray | None, str]]:
        """(caption, a real image of it or None, remark) of the sample table."""
        captions = class_captions(self.real)
        if captions and self.experiment.eval.prompts == "labels":
            labels = self.real.labels.tolist()
            return [(c, self.real.images[labels.index(label)], "") for label, c in list(captions.items())[:PROMPTS]]
        seen, rng = [], np.random.default_rng(self.seed)
        for examples, remark in ((self.real, "in training"), (self.held_out, "held out")):
            if examples.captioned:
                chosen = rng.permutation(len(examples))[: PROMPTS // 2]
                seen += [(examples.captions[i], examples.images[i], remark) for i in chosen]
        return seen

    def samples(self) -> str:
        prompts = self.prompts()
        if not self.draws or not prompts:
            return page.absent("The model draws no images, or its data has no captions to ask for.")
        scales = self.experiment.eval.guidances or (self.experiment.sampling.guidance,)
        # As many per guidance scale as fit a page beside each other.
        each = 5 if self.real.images.shape[1] <= 24 else 4
        asked = [caption for caption, _, _ in prompts for _ in range(each)]
        drawn = [self.run.draw(asked, seed=self.seed, guidance=scale) for scale in scales]
        lines = []
        for i, (caption, real, remark) in enumerate(prompts):
            name = page.escape(caption) + (f'<span class="verdict">{page.escape(remark)}</span>' if remark else "")
            cells = [page.thumbnail(real, f"real: {caption}") if real is not None else ""]
            for scale, images in zip(scales, drawn, strict=True):
                mine = images[i * each : (i + 1) * each]
                cells.append("".join(page.thumbnail(image, f"{caption}, guidance {scale:g}") for image in mine))
            lines.append([name, *cells])
        config = self.experiment.sampling
        how = DRAWINGS[self.run.drawn.objective].words.format(config=config)
        note = (
            f"{how}, seed {self.seed}, not chosen by hand. A row has the same noise at each guidance scale; 1 is none."
        )
        head = ["Caption", "Real", *(f"Guidance {scale:g}" for scale in scales)]
        return f'<p class="note">{page.escape(note)}</p>{page.html_table(head, lines, "samples")}'

    def trajectory(self) -> str:
        prompts = self.prompts()
        if not self.draws or self.run.drawn.discrete:
            return page.absent("The model draws no images by a solver.")
        caption = prompts[min(7, len(prompts) - 1)][0] if prompts else ""
        config = self.experiment.sampling
        at = sorted({round(i * (config.steps - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
        words = (Segment("text", self.run.task.tokenizer.encode(caption)),) if caption else ()
        prompt = Prompt(words, draw=True)
        path = trajectory(self.run.task, self.run.params, prompt, self.seed, config, at=at)

        def strip(latents: np.ndarray, what: str) -> str:
            images = [self.run.codec.decode(x) for x in latents]
            moments = [f"t = {t:.2f}" for t in path.times]
            figures = "".join(
                f"<figure>{page.thumbnail(image, f'{what} at {t}', 96)}<figcaption>{t}</figcaption></figure>"
                for image, t in zip(images, moments, strict=True)
            )
            return f'<p class="note">{page.escape(what)}</p><div class="wide"><div class="strip">{figures}</div></div>'

        asked = f"Caption: \u201c{caption}\u201d, guidance {config.guidance:g}, {config.solver}, {config.steps} steps, "
        asked += f"seed {self.seed}."
        body = strip(path.x, "The image on its way") + strip(path.data, "What the model takes the finished image to be")
        return f"<p>{page.escape(asked)}</p>{body}"

    def captions(self) -> str:
        if not self.held_out.captioned:
            return page.absent("The held-out data has no captioned images.")
        if not self.run.spec.reads_media:
            return page.absent("The model reads no images.")
        found = _read_captions(self.workdir, self.held_out) if self.evaluation else []
        note = "From the evaluation"
        if not found:
            found = list(captioning(self.run, self.held_out, CAPTIONS, self.seed).rows)
            note = "Written for this report"
        wrong = [row for row in found if not row["right"]]
        chosen = wrong[: CAPTIONS * 2 // 3]
        chosen += [row for row in found if row["right"]][: CAPTIONS - len(chosen)]
        note += (
            f": {len(found)} images, greedy decoding, {len(wrong)} wrong. Shown are "
            f"{sum(not row['right'] for row in chosen)} wrong ones first, then right ones in the order of the data."
        )
        tiles = []
        for row in chosen:
            image = page.thumbnail(self.held_out.images[row["index"]], f"held-out image: {row['reference']}")
            kind, mark = (
                ("right", "\u2713 right") if row["right"] else ("wrong", f"\u2717 wrong, it is: {row['reference']}")
            )
            written = page.escape(row["caption"]) or "<em>(empty)</em>"
            verdict = f'<span class="verdict">{page.escape(mark)}</span>'
            tiles.append(f'<figure class="tile {kind}">{image}<figcaption>{written}{verdict}</figcaption></figure>')
        return f'<p class="note">{page.escape(note)}</p><div class="tiles">{"".join(tiles)}</div>'

    def mask(self) -> str:
        with contextlib.closing(_first_batch(self.run, self.experiment)) as batches:
            picture = pictures.mask_picture(next(batches), self.run.spec, 0)
        last = self.metrics[-1] if self.metrics else {}
        shares = {k.removeprefix("packing_"): v for k, v in last.items() if k.startswith("packing_") and v is not None}
        said = "The first row of the training data, documents packed one after another; which token may see which. "
        listed = ", ".join(f"{name} {value:.1%}" for name, value in sorted(shares.items()))
        said += f"Share of slots that hold a token, over the whole training: {listed or 'not logged'}."
        return f"<p>{page.escape(said)}</p>{page.plate(picture, 'attention mask of a packed training row')}"

    # --- origin -------------------------------------------------------------------------------------------------------

    def origin(self) -> str:
        commands = [(row.get("date", ""), row["command"]) for row in provenance.read_commands(self.workdir)]
        parts = []
        if commands:
            lines = "\n".join(f"{page.escape(command)}  # {page.escape(date)}" for date, command in commands)
            parts.append(f"<p>Training</p><pre>{lines}</pre>")
        else:
            parts.append(
                page.absent("The training command was not recorded (commands.jsonl is missing); its config is below.")
            )
        if self.evaluation and self.evaluation.get("command"):
            line = f"{self.evaluation['command']}  # {self.evaluation.get('date', '')}"
            parts.append(f"<p>Evaluation</p><pre>{page.escape(line)}</pre>")
        parts.append(f"<p>This report</p><pre>{page.escape(provenance.command())}  # {provenance.now()}</pre>")
        facts = provenance.versions() | {"code": provenance.code_text()}
        facts |= {k: str(v) for k, v in provenance.machine().items()}
        facts["metrics"] = f"{len(self.metrics)} rows up to step {self.run.step}"
        parts.append(
            page.html_table(("Versions and machine", ""), ([page.escape(k), page.escape(v)] for k, v in facts.items()))
        )
        config = page.escape(to_json(self.experiment))
        parts.append(f"<details><summary>Config</summary><pre>{config}</pre></details>")
        return "".join(parts)


def _first_batch(run: Run, experiment) -> Iterator[Any]:
    """The first batch of training, with no batch made ahead of it."""
    data = dataclasses.replace(experiment.data, prefetch=0)
    with run.task.open_data(dataclasses.replace(experiment, data=data)) as batches:
        yield next(batches)


def _read_captions(workdir: pathlib.Path, held_out: Examples) -> list[dict]:
    """The captions that the evaluation wrote, of images that are read here; [] if there are none, or not these."""
    path, captions = workdir / "samples" / "captions.jsonl", held_out.captions

    def fits(row: Any) -> bool:
        if not isinstance(row, dict) or type(row.get("index")) is not int or not 0 <= row["index"] < len(captions):
            return False
        texts = isinstance(row.get("caption"), str) and row.get("reference") == captions[row["index"]]
        return texts and isinstance(row.get("right"), bool)

    found, damaged = storage.read_json_lines(path, fits)
    if damaged:
        logging.warning("%s does not fit the held-out data, and captions are written anew", path)
    return [] if damaged else found


def training_seconds(metrics: list[dict]) -> float | None:
    """Time in training steps, from the logged rates; None if no rate was logged."""
    total, before, unknown = 0.0, 0, 0
    rated = 0
    for row in metrics:
        done, before = row["step"] - before, row["step"]
        if rate := row.get("steps_per_second"):
            total, rated = total + done / rate, rated + done
        else:
            unknown += done
    # Rows without a rate hold a compilation: their steps are counted at the mean speed of the others.
    return total * (1 + unknown / rated) if rated else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not logged"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def write_report(workdir: str | os.PathLike, seed: int = 0) -> pathlib.Path:
    """Writes the workdir's report.html and returns its path.

    Raises:
      UsageError: if the workdir holds no run that samples or cannot be written, or its data is missing.
    """
    path = pathlib.Path(workdir) / "report.html"
    programs.read_experiment(workdir)  # is it a run?
    storage.check_writable(path)  # before a minute of work
    storage.write_whole(path, Report(workdir, seed).html())
    return path


def main(argv) -> None:
    programs.set_up_jax()
    if not FLAGS.workdir:
        raise UsageError("--workdir is missing: the folder of a training run, for example runs/digits")
    path = write_report(FLAGS.workdir, FLAGS.seed)
    print(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_integer("seed", 0, "Of the noise of the samples.")
    programs.run(main)
