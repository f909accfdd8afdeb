"""The slow plain model: one document at a time, in reading order, in float64, the mask from nested loops.

Written from the papers' rules, without the library's packing, masks, experts by slices, or JAX.
"""

import numpy as np
from tiny import BOI, BOS, EOI, EOS

P = 2  # patch side; images are 4 x 4 x 1


def tokens(document, position="advance", bagel=False, axes=1):
    """A document as a list of tokens in reading order."""
    out, state = [], {"counter": 0, "image": 0, "span": 0}

    def add(stream, index, **fields):
        out.append({"stream": stream, "span": 0, "private": False, "target": None, "position": index} | fields)

    def word(i):
        add("text", (state["counter"],) * axes, id=int(i))
        state["counter"] += 1

    def patches(value, stream, index_of, **fields):
        for y in range(2):
            for x in range(2):
                patch = value[P * y : P * y + P, P * x : P * x + P, 0].reshape(-1)
                add(stream, index_of(y, x), patch=patch, item=state["image"], place=(y, x), **fields)

    def transfusion(value):
        word(BOI)
        state["span"] += 1
        start = state["counter"]
        index_of = {
            "advance": lambda y, x: (start + 2 * y + x,),
            "item": lambda y, x: (start,),
            "grid": lambda y, x: (start, start + y, start + x),
        }[position]
        patches(value, "image", index_of, span=state["span"])
        state["counter"] = start + {"advance": 4, "item": 1, "grid": 2}[position]
        word(EOI)

    def twice(value):  # BAGEL: noised and private, then clean; one index for all, openers inside
        index = (state["counter"],)
        for stream, private in (("noised", True), ("clean", False)):
            state["span"] += 1
            fields = {"span": state["span"], "private": private}
            add("text", index, id=BOI, **fields)
            patches(value, stream, lambda y, x: index, **fields)
            add("text", index, id=EOI, **fields)
        state["counter"] += 1

    word(BOS)
    for segment in document:
        if segment.kind == "text":
            for i in segment.value:
                word(i)
        else:
            twice(segment.value) if bagel else transfusion(segment.value)
            state["image"] += 1
    word(EOS)
    for here, following in zip(out, out[1:], strict=False):
        # Not: BAGEL's second copy after its first.
        if here["stream"] == following["stream"] == "text" and not (here["private"] and not following["private"]):
            here["target"] = following["id"]
    return out


def sees(q, k, i, j):
    """Whether token q, the i-th of its document, sees token k, the j-th."""
    if q["span"] and q["span"] == k["span"]:
        return True
    return j <= i and not k["private"]


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, scale, epsilon):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + epsilon) * scale


def turn(x, position, theta):
    """Rotary embedding of one head [K]."""
    half, axes = len(x) // 2, len(position)
    per_axis = [half - (axes - 1) * (half // axes)] + [half // axes] * (axes - 1)
    axis_of = [a for a, count in enumerate(per_axis) for _ in range(count)]
    out = np.empty_like(x)
    for i in range(half):
        angle = position[axis_of[i]] * theta ** (-i / half)
        a, b = x[i], x[i + half]
        out[i], out[i + half] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
    return out


def time_vector(t, weights):
    frequency = 10_000.0 ** (-np.arange(128) / 128)
    features = np.concatenate([np.cos(1000 * t * frequency), np.sin(1000 * t * frequency)])
    hidden = silu(features @ weights["hidden"] + weights["hidden_bias"])
    return hidden @ weights["out"] + weights["out_bias"]


def place_vector(place, width):
    quarter = width // 4
    frequency = 10_000.0 ** (-np.arange(quarter) / quarter)
    return np.concatenate([f(place[axis] * frequency) for axis in (0, 1) for f in (np.sin, np.cos)])


def embed(token, parts, width, times, noise):
    part = parts[token["stream"]]
    if token["stream"] == "text":
        return part["embed"]["table"][token["id"]]
    t = times.get(token["stream"], np.ones(9))[token["item"]]
    y, x = token["place"]
    eps = noise[token["stream"]][token["item"], 2 * y + x] if token["stream"] in noise else np.zeros(P * P)
    noised = t * token["patch"] + (1 - t) * eps
    token["wanted"] = token["patch"] - eps
    vector = noised @ part["embed"]["kernel"] + part["embed"]["bias"]
    return vector + time_vector(t, part["time"]) + place_vector(token["place"], width)


def forward(params, document_tokens, config, expert_of, times, noise):
    """The normed outputs of all tokens of one document, [n, D]."""
    width, size = config.width, config.size
    share = config.heads // config.groups
    blocks = params["trunk"]["blocks"]
    x = np.stack([embed(token, params["parts"], width, times, noise) for token in document_tokens])
    n = len(document_tokens)
    for layer in range(config.layers):
        q, k, v = [], [], []
        for i, token in enumerate(document_tokens):
            w = {name: a[layer] for name, a in blocks[expert_of[token["stream"]]].items()}
            y = norm(x[i], w["attention_norm"], config.norm_epsilon)
            heads = {name: np.einsum("d,dhk->hk", y, w[name]) for name in "qkv"}
            if config.qk_norm != "none":
                heads["q"] = norm(heads["q"], w["q_norm"], config.norm_epsilon)
                heads["k"] = norm(heads["k"], w["k_norm"], config.norm_epsilon)
            q.append([turn(head, token["position"], config.rope_theta) for head in heads["q"]])
            k.append([turn(head, token["position"], config.rope_theta) for head in heads["k"]])
            v.append(heads["v"])
        new = []
        for i, token in enumerate(document_tokens):
            w = {name: a[layer] for name, a in blocks[expert_of[token["stream"]]].items()}
            seen = [j for j in range(n) if sees(token, document_tokens[j], i, j)]
            attended = np.zeros((config.heads, size))
            for h in range(config.heads):
                scores = np.array([np.dot(q[i][h], k[j][h // share]) / np.sqrt(size) for j in seen])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                attended[h] = sum(a * v[j][h // share] for a, j in zip(weights, seen, strict=True))
            y = x[i] + np.einsum("hk,hkd->d", attended, w["o"])
            z = norm(y, w["ffn_norm"], config.norm_epsilon)
            new.append(y + (silu(z @ w["gate"]) * (z @ w["up"])) @ w["down"])
        x = np.stack(new)
    scales = params["trunk"]["final_norm"]
    return np.stack([
        norm(x[i], scales[expert_of[token["stream"]]], config.norm_epsilon)
        for i, token in enumerate(document_tokens)
    ])  # fmt: skip


def losses(params, document_tokens, hidden, image_stream):
    """(sum, count) of the text's and of the images' token losses of one document."""
    text, image = [], []
    for token, y in zip(document_tokens, hidden, strict=True):
        head = params["parts"][token["stream"]]["head"]
        if token["stream"] == "text" and token["target"] is not None:
            logits = y @ head["kernel"]
            text.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token["target"]])
        elif token["stream"] == image_stream:
            image.append(np.mean((y @ head["kernel"] + head["bias"] - token["wanted"]) ** 2))
    return (sum(text), len(text)), (sum(image), len(image))
