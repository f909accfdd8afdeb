"""Writes a tiny CLIP and a tiny SigLIP with random weights, and what transformers computes with them.

  python tests/data/similarity/make.py    # needs torch, transformers, tokenizers and Pillow

`expected.json` of each folder holds the cosine of each of the pictures with each of the texts, after transformers' own
preparation of both.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

FOLDER = pathlib.Path(__file__).parent
TEXTS = ["a red cat", "Two dogs, running!", "a", "the big dog is on a red mat and the cat is on the big mat"]
WORDS = sorted({word for text in TEXTS for word in "".join(c for c in text.lower() if c.isalpha() or c == " ").split()})


def pictures() -> list[np.ndarray]:
    """Three pictures of random blocks, of which the last has to be resized."""
    rng = np.random.default_rng(0)
    sizes = ((4, 4, 4), (2, 2, 8), (3, 5, 6))
    blocks = [(rng.integers(0, 256, (height, width, 3)), np.ones((side, side, 1))) for height, width, side in sizes]
    return [np.kron(*block).astype(np.uint8) for block in blocks]


def tokenizer(kind: str) -> Tokenizer:
    special = {"clip": ["<start>", "<end>"], "siglip": ["<pad>", "</s>"]}[kind]
    vocabulary = {word: number for number, word in enumerate([*WORDS, "<unk>"] if kind == "clip" else special + WORDS)}
    vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(special if kind == "clip" else ["<unk>"])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    drops = [normalizers.Replace(mark, "") for mark in ",!"]
    model.normalizer = normalizers.Sequence([normalizers.Lowercase(), *drops])
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<start> $A <end>" if kind == "clip" else "$A </s>"
    named = [(token, vocabulary[token]) for token in special if token in single]
    model.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)
    return model


def ids_of(model: Tokenizer, length: int, fill: int | None) -> torch.Tensor:
    rows = [model.encode(text).ids for text in TEXTS]
    rows = [row if len(row) <= length else row[: length - 1] + row[-1:] for row in rows]
    return torch.tensor([row + [row[-1] if fill is None else fill] * (length - len(row)) for row in rows])


def make(kind: str) -> None:
    folder = FOLDER / kind
    folder.mkdir(exist_ok=True)
    model = tokenizer(kind)
    model.save(str(folder / "tokenizer.json"))
    common = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    vision = common | dict(image_size=16, patch_size=8)
    text = common | dict(vocab_size=model.get_vocab_size(), max_position_embeddings=12)
    torch.manual_seed(0)
    if kind == "clip":
        text |= dict(bos_token_id=model.token_to_id("<start>"), eos_token_id=model.token_to_id("<end>"))
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        net, size = transformers.CLIPModel(config), {"shortest_edge": 16}
        prepare = transformers.CLIPImageProcessor(size=size, crop_size={"height": 16, "width": 16})
        ids = ids_of(model, 12, None)
    else:
        text |= dict(pad_token_id=1, bos_token_id=None, eos_token_id=1, projection_size=16)
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        net = transformers.SiglipModel(config)
        prepare = transformers.SiglipImageProcessor(size={"height": 16, "width": 16})
        ids = ids_of(model, 12, 1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.eval().save_pretrained(folder, safe_serialization=True)
    prepare.save_pretrained(folder)
    pixels = prepare([Image.fromarray(picture) for picture in pictures()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = net(input_ids=ids, pixel_values=pixels)
    cosines = (found.image_embeds @ found.text_embeds.T).tolist()
    probability = torch.sigmoid(found.logits_per_image).tolist()
    made = {"transformers": transformers.__version__, "texts": TEXTS, "cosines": cosines, "probability": probability}
    (folder / "expected.json").write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    for name in ("clip", "siglip"):
        make(name)
