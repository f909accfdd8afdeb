"""Images that a report draws, one of them on its way from noise, and captions of held-out images."""

import pathlib
from typing import Any

import numpy as np
from absl import logging

from transfusion import storage
from transfusion.evaluation import page
from transfusion.evaluation.examples import Examples
from transfusion.evaluation.scores import captioning
from transfusion.evaluation.sections.material import Material
from transfusion.sampling.drawing import DRAWINGS
from transfusion.sampling.trajectory import Prompt, trajectory
from transfusion.sequence import Segment

CAPTIONS = 36  # shown
SHOWN_STEPS = 8  # of the trajectory


def samples(material: Material) -> str:
    """A table of images drawn from captions, at each guidance scale, beside a real image of the caption."""
    prompts = material.prompts()
    if not material.draws or not prompts:
        return page.absent("The model draws no images, or its data has no captions to ask for.")
    scales = material.experiment.eval.guidances or (material.experiment.sampling.guidance,)
    # As many per guidance scale as fit a page beside each other.
    each = 5 if material.real.images.shape[1] <= 24 else 4
    asked = [caption for caption, _, _ in prompts for _ in range(each)]
    drawn = [material.run.draw(asked, kind=material.run.shows, seed=material.seed, guidance=scale) for scale in scales]
    lines = []
    for i, (caption, real, remark) in enumerate(prompts):
        name = page.escape(caption) + (f'<span class="verdict">{page.escape(remark)}</span>' if remark else "")
        cells = [page.thumbnail(real, f"real: {caption}") if real is not None else ""]
        for scale, images in zip(scales, drawn, strict=True):
            mine = images[i * each : (i + 1) * each]
            cells.append("".join(page.thumbnail(image, f"{caption}, guidance {scale:g}") for image in mine))
        lines.append([name, *cells])
    config = material.experiment.sampling.of_kind(material.run.shows)
    how = DRAWINGS[material.run.drawn.objective].words.format(config=config)
    note = (
        f"{how}, seed {material.seed}, not chosen by hand. A row has the same noise at each guidance scale; 1 is none."
    )
    head = ["Caption", "Real", *(f"Guidance {scale:g}" for scale in scales)]
    return f'<p class="note">{page.escape(note)}</p>{page.html_table(head, lines, "samples")}'


def from_noise(material: Material) -> str:
    """An image at a few moments on its way from noise, and what the model predicts of it there."""
    prompts = material.prompts()
    if not material.draws or material.run.drawn.vocabulary:
        return page.absent("The model draws no images by a solver.")
    caption = prompts[min(7, len(prompts) - 1)][0] if prompts else ""
    config = material.experiment.sampling.of_kind(material.run.shows)
    at = sorted({round(i * (config.steps - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    words = (Segment("text", material.run.task.tokenizer.encode(caption)),) if caption else ()
    prompt = Prompt(words, draw=True, kind=material.run.shows)
    path = trajectory(material.run.task, material.run.params, prompt, material.seed, config, at=at)

    def strip(latents: np.ndarray, what: str) -> str:
        images = [material.run.codecs[material.run.shows].decode(x) for x in latents]
        moments = [f"t = {t:.2f}" for t in path.times]
        figures = "".join(
            f"<figure>{page.thumbnail(image, f'{what} at {t}', 96)}<figcaption>{t}</figcaption></figure>"
            for image, t in zip(images, moments, strict=True)
        )
        return f'<p class="note">{page.escape(what)}</p><div class="wide"><div class="strip">{figures}</div></div>'

    asked = f"Caption: \u201c{caption}\u201d, guidance {config.guidance:g}, {config.solver}, {config.steps} steps, "
    asked += f"seed {material.seed}."
    body = strip(path.x, "The image on its way") + strip(path.data, "What the model takes the finished image to be")
    return f"<p>{page.escape(asked)}</p>{body}"


def captions(material: Material) -> str:
    """Captions of held-out images: wrong ones first, then right ones."""
    if not material.held_out.captioned:
        return page.absent("The held-out data has no captioned images.")
    if not material.run.spec.reads_media:
        return page.absent("The model reads no images.")
    found = read_captions(material.workdir, material.held_out) if material.evaluation else []
    note = "From the evaluation"
    if not found:
        found = list(captioning(material.run, material.held_out, CAPTIONS, material.seed).rows)
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
        image = page.thumbnail(material.held_out.images[row["index"]], f"held-out image: {row['reference']}")
        kind, mark = (
            ("right", "\u2713 right") if row["right"] else ("wrong", f"\u2717 wrong, it is: {row['reference']}")
        )
        written = page.escape(row["caption"]) or "<em>(empty)</em>"
        verdict = f'<span class="verdict">{page.escape(mark)}</span>'
        tiles.append(f'<figure class="tile {kind}">{image}<figcaption>{written}{verdict}</figcaption></figure>')
    return f'<p class="note">{page.escape(note)}</p><div class="tiles">{"".join(tiles)}</div>'


def read_captions(workdir: pathlib.Path, held_out: Examples) -> list[dict]:
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
