"""The page: a chat beside the picture on its way from noise, and below them what the model looked at."""

import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from transfusion.api import MOST_SEED, Trained
from transfusion.api.prompts import Part, whole_number
from transfusion.api.summary import summary
from transfusion.data import media
from transfusion.demo import maps
from transfusion.demo.answers import WISHES, Moment, Turn, answer, apart, document_of, usual
from transfusion.demo.inside import Inside, look_inside
from transfusion.demo.uploads import read_picture
from transfusion.errors import UsageError
from transfusion.evaluation.pictures import to_picture
from transfusion.sample import kind_of, suffix_of

SHOWN = 224  # pixels to which smaller pictures are about enlarged
PAUSE = 0.04  # seconds between two moments of a picture, so that eyes can follow
CSS = """.gradio-container { max-width: 1200px !important; margin: auto; } #status { min-height: 1.6em; }
#chat [title="Share"], #chat [aria-label="Share"] { display: none; }"""
HELP = "Write, and attach pictures if the model reads some. An empty message asks the model to begin."
INSIDE = """Press the button to see the conversation as the model reads it. On the left, which token *may* look at
which: text sees what came before, and the patches of a picture see each other. On the right, at which it *did* look."""


def theme() -> Any:
    """Gradio's theme with fonts of the visitor's machine: nothing is loaded from elsewhere."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


class Page:
    """The page of one model; `blocks` lays it out. It answers when `ready` has ended, which compiles the model."""

    def __init__(self, run: Trained, most_pixels: int, ready: threading.Thread | None = None):
        self._run, self._most_pixels, self._ready = run, most_pixels, ready
        self._folder = tempfile.TemporaryDirectory(prefix="transfusion-demo-")  # of clips, which browsers read as files

    # --- what is done -------------------------------------------------------------------------------------------------

    def reply(
        self,
        message: dict[str, Any],
        shown: list[dict[str, Any]],
        turns: list[Turn],
        remember: bool,
        template: bool,
        wish: str,
        guidance: float,
        steps: float,
        temperature: float,
        most_tokens: float,
        seed: float,
        count_up: bool,
    ) -> Iterator[tuple]:
        """Answers a message; yields the message box, the chat, its turns, both pictures, the status and the seed."""
        try:
            said = self._said(message) or [""]
            asked: list[Turn] = [*(turns if remember else ()), ("user", said)]
            shown = [*shown, *({"role": "user", "content": self._content(part)} for part in said)]
            number = whole_number("seed", int(seed or 0), MOST_SEED)
            yield None, shown, turns, None, None, "The model thinks (the first answer takes longer) ...", seed
            if self._ready is not None:
                self._ready.join()
            begun, moment, chat = time.monotonic(), Moment(()), shown
            document = document_of(self._run, asked, template)
            settings = {"guidance": guidance, "steps": int(steps), "temperature": temperature}
            settings |= {"max_tokens": int(most_tokens)} | apart(self._run)
            for moment in answer(self._run, document, wish, number, **settings):
                chat = [*shown, *self._messages(moment)]
                if moment.noisy is not None:
                    time.sleep(PAUSE)
                    words = f"From noise to a picture: t = {moment.time:.2f}"
                    yield None, chat, turns, enlarged(moment.noisy), enlarged(moment.guess), words, seed
            words = f"{self._made(moment)} with seed {number}, in {time.monotonic() - begun:.1f} s"
            after = (number + 1) % (MOST_SEED + 1) if count_up else number
            last = next((enlarged(p) for p in reversed(moment.parts) if _is_picture(p)), None)
            yield None, chat, [*asked, ("assistant", moment.parts)], last, last, words, after
        except UsageError as error:
            yield gr.skip(), shown, turns, gr.skip(), gr.skip(), f"**error:** {error}", seed

    def _said(self, message: dict[str, Any]) -> list[Part]:
        """The pictures and the text of a message, in reading order."""
        pictures: list[Part] = [read_picture(path, self._most_pixels) for path in message.get("files") or ()]
        text = message.get("text") or ""
        return [*pictures, text] if text else pictures

    def inside(self, turns: Sequence[Turn], template: bool, layer: int, head: int) -> tuple:
        """What the model looks at: what is kept for other layers, both pictures, the sliders and the status."""
        try:
            if not turns:
                raise UsageError("say something first")
            found = look_inside(self._run, document_of(self._run, turns, template))
        except UsageError as error:
            return None, None, None, gr.skip(), gr.skip(), f"**error:** {error}"
        layers, heads = found.weights.shape[:2]
        sliders = gr.Slider(maximum=max(2, layers)), gr.Slider(maximum=heads)  # a slider has two places at least
        words = f"{len(found.labels)} tokens, {layers} layers of {heads} heads"
        return found, maps.mask_of(found), maps.attention_map(found, int(layer), int(head)), *sliders, words

    def _messages(self, moment: Moment) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": self._content(part)} for part in moment.parts]

    def _content(self, part: Part) -> Any:
        """A part of a turn as the chat shows it."""
        if isinstance(part, str):
            return part or "*(nothing)*"
        if isinstance(part, Image.Image) or _is_picture(part):
            return gr.Image(enlarged(part), format="png", show_label=False, buttons=[], container=False)
        rate = self._run.codecs[kind_of(part)].rate
        path = pathlib.Path(tempfile.mktemp(suffix_of(part), dir=self._folder.name))
        path.write_bytes(media.to_file(part, path.suffix, rate))
        return gr.Audio(str(path)) if path.suffix == ".wav" else gr.Image(str(path), show_label=False, buttons=[])

    def _made(self, moment: Moment) -> str:
        """What an answer holds, in words."""
        kinds = ["text" if isinstance(part, str) else kind_of(part) for part in moment.parts]
        return f"Answered by {', then '.join(kinds)}," if kinds else "The model said nothing,"

    # --- how it looks -------------------------------------------------------------------------------------------------

    def blocks(self) -> gr.Blocks:
        """Lays out the page."""
        with gr.Blocks(title="transfusion", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
            gr.Markdown(f"# transfusion\n{self._introduction()}")
            turns, kept = gr.State([]), gr.State(None)
            with gr.Row():
                with gr.Column(scale=3):
                    chat = gr.Chatbot(label="Conversation", height=460, elem_id="chat", buttons=[], allow_tags=False)
                    box = gr.MultimodalTextbox(
                        placeholder=HELP, show_label=False, file_types=["image"], file_count="multiple",
                        sources=["upload"], elem_id="box", max_plain_text_length=100_000,
                    )  # fmt: skip
                    status = gr.Markdown("", elem_id="status")
                    forget = gr.Button("New conversation", elem_id="forget", size="sm")
                with gr.Column(scale=2):
                    noisy, guess = self._pictures()
                    settings = self._settings()
            seed = settings[-2]
            outputs = [box, chat, turns, noisy, guess, status, seed]
            box.submit(
                self.reply, [box, chat, turns, *settings], outputs, show_progress="hidden", api_visibility="private"
            )
            self._inside_tab(turns, settings[1], kept, status)
            fresh = lambda: (None, [], [], None, None, "")  # noqa: E731
            forget.click(fresh, None, outputs[:-1], show_progress="hidden", api_visibility="private")
        return blocks

    def _introduction(self) -> str:
        run = self._run
        draws = ", ".join(f"{kind}s" for kind in run.draws) or "nothing"
        sources = ", ".join(source.name or name for name, source in run.experiment.data.sources.items())
        about = summary(run).replace(run.workdir, pathlib.Path(run.workdir).name)
        return (
            f"A model that was trained on **{sources}** for {run.step:,} steps; it draws {draws}, and what it was not "
            f"trained on it does not know.\n\n<details><summary>About this model</summary>\n\n```text\n{about}\n```\n"
            "</details>"
        )

    def _pictures(self) -> tuple[gr.Image, gr.Image]:
        made = []
        with gr.Row():
            for words, name in (("From noise ...", "noisy"), ("... to what it expects", "guess")):
                with gr.Column(min_width=120):
                    gr.Markdown(words)
                    made.append(
                        gr.Image(
                            show_label=False, format="png", height=230, interactive=False, buttons=[], elem_id=name
                        )
                    )
        return made[0], made[1]

    def _settings(self) -> list[Any]:
        """The settings, in the order of the arguments of `reply`."""
        begin = usual(self._run)
        together = self._run.experiment.data.edit > 0 or self._run.experiment.data.both > 0
        own = self._run.experiment.tokenizer.chat.kind != "plain"
        with gr.Row():
            remember = gr.Checkbox(together or own, label="Go on with the conversation", elem_id="remember")
            template = gr.Checkbox(own, label="Turns in the chat template", elem_id="template")
        wish = gr.Radio(list(WISHES), value=next(iter(WISHES)), label="Answer", elem_id="wish")
        with gr.Row():
            guidance = gr.Slider(0, 10, begin["guidance"], step=0.25, label="Guidance", elem_id="guidance")
            steps = gr.Slider(1, 100, begin["steps"], step=1, label="Steps", elem_id="steps")
        with gr.Row():
            temperature = gr.Slider(0, 2, begin["temperature"], step=0.05, label="Temperature", elem_id="temperature")
            tokens = gr.Slider(1, 512, begin["max_tokens"], step=1, label="Most tokens of text", elem_id="tokens")
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, elem_id="seed")
            count_up = gr.Checkbox(True, label="Another seed each time", elem_id="count_up")
        return [remember, template, wish, guidance, steps, temperature, tokens, seed, count_up]

    def _inside_tab(self, turns: gr.State, template: gr.Checkbox, kept: gr.State, status: gr.Markdown) -> None:
        with gr.Accordion("What the model looks at", open=True):
            gr.Markdown(INSIDE)
            with gr.Row():
                look = gr.Button("Look inside", variant="primary", elem_id="look", scale=1)
                model = self._run.task.model
                layer = gr.Slider(1, max(2, model.layers), 1, step=1, label="Layer", elem_id="layer", scale=2)
                head = gr.Slider(0, model.heads, 0, step=1, label="Head (0: the mean)", elem_id="head", scale=2)
            with gr.Row():
                mask, weights = (
                    gr.Image(label=label, format="png", interactive=False, elem_id=name, buttons=["fullscreen"])
                    for label, name in (("Mask", "mask"), ("Attention", "attention"))
                )
        outputs = [kept, mask, weights, layer, head, status]
        look.click(self.inside, [turns, template, layer, head], outputs, api_visibility="private")
        for slider in (layer, head):
            slider.release(attention, [kept, layer, head], weights, show_progress="hidden", api_visibility="private")


def attention(found: Inside | None, layer: int, head: int) -> Image.Image | None:
    """The picture of another layer or head."""
    return found and maps.attention_map(found, int(layer), int(head))


def _is_picture(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.ndim == 3


def enlarged(picture: np.ndarray | Image.Image) -> Image.Image:
    """A picture that can be seen: small ones get larger pixels."""
    image = picture.convert("RGB") if isinstance(picture, Image.Image) else to_picture(picture)
    scale = max(1, round(SHOWN / max(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
