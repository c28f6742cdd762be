"""How good is an initialisation? Measures the public converter's, ours, and ours calibrated, on one teacher, before any training.

    python -m experiments.compare_init --teacher FOLDER --train FILE --items FILE --out results/135m/initialisation.csv

Two kinds of rows. ``layer`` given: that one layer replaced by an untrained KDA or GDN, with its relative activation error and the KL to
the teacher. ``layer`` empty: whole placements, with the log-likelihood per token of the teacher's traces at step 0.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.output.files import replacing
from analysis.output.one_line import Parser
from experiments.data.items import read_items
from experiments.runs.progress import progress
from supernet.decoder import Supernet
from supernet.initialise import calibrate, initialise
from supernet.mixers import MIXERS
from supernet.mixers.delta import GatedDeltaNet, KimiDeltaAttention
from supernet.scoring import Item, score
from supernet.teacher import load_teacher

MAPPINGS = ("public", "ours", "calibrated")
DELTA = ("K", "G")


@torch.no_grad()
def public_initialise(supernet: Supernet, teacher: Supernet, generator: torch.Generator) -> None:
    """What Apriel2's public converter makes of a teacher: key-value head ``h % kv_heads``, GDN's z, beta and alpha 0, biases dropped.

    KDA's gates and beta, left as torch makes a Linear (uniform in ``+-fan_in ** -0.5``), come from ``generator``.
    """
    initialise(supernet, teacher)  # shared weights, FA and SWA: exact copies there too
    for block, source in zip(supernet.blocks, teacher.blocks, strict=True):
        attention = source.mixers["F"]
        heads = [p.weight.unflatten(0, (-1, attention.config.head_dim)) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]

        def rows(weight: Tensor, count: int) -> Tensor:
            return weight[torch.arange(count) % len(weight)].flatten(0, 1)

        for mixer in block.mixers.values():
            if isinstance(mixer, KimiDeltaAttention):
                for own, weight in zip((mixer.q_proj, mixer.k_proj, mixer.v_proj), heads, strict=True):
                    own.weight.copy_(rows(weight, mixer.config.kda_heads))
                for own in (mixer.f_a_proj, mixer.f_b_proj, mixer.g_a_proj, mixer.g_b_proj, mixer.beta_proj):
                    bound = own.in_features**-0.5
                    own.weight.uniform_(-bound, bound, generator=generator)
                mixer.v_conv.weight[..., -1] = 0.5
            elif isinstance(mixer, GatedDeltaNet):
                key, value = mixer.config.gdn_key_heads, mixer.config.gdn_value_heads
                qkv = [rows(weight, count) for weight, count in zip(heads, (key, key, value), strict=True)]
                mixer.in_proj_qkvz.weight.copy_(torch.cat([*qkv, torch.zeros_like(qkv[2])]))
                mixer.convolution.weight[..., -1] = 0.5


def initialised(mapping: str, teacher: Supernet, tokens: Tensor) -> Supernet:
    """A supernet with all mixers, started from the teacher by one of MAPPINGS; ``tokens`` [N, T] calibrate."""
    model = Supernet(teacher.config.replace(mixers="".join(MIXERS))).to(teacher.embed.weight)
    if mapping == "public":
        public_initialise(model, teacher, torch.Generator().manual_seed(0))
    else:
        initialise(model, teacher)
    if mapping == "calibrated":
        calibrate(model, teacher, tokens, progress=lambda layers: progress(layers, "calibrate"))
    return model.eval()


def packed(items: list[Item], length: int) -> Tensor:
    """The items' tokens one after another, cut into rows: [N, length] int64, the rest dropped."""
    stream = torch.cat([item.tokens for item in items])
    if len(stream) < length:
        raise ValueError(f"the items hold {len(stream)} tokens, a row needs {length}: give more items or lower --length")
    return stream[: len(stream) // length * length].unflatten(0, (-1, length))


@torch.inference_mode()
def one_layer(model: Supernet, teacher: Supernet, tokens: Tensor, layers: list[int]) -> Iterator[dict]:
    """One teacher layer replaced by the model's untrained KDA or GDN: relative squared activation error; KL in nats per token."""
    states = [teacher.embed(tokens)]
    for block in teacher.blocks:
        states.append(block(states[-1], "F")[0])
    log_p = F.log_softmax(teacher.head(teacher.norm(states[-1])).float(), -1)
    for layer in layers:
        source, x = teacher.blocks[layer], states[layer]
        target = source.mixers["F"](source.mixer_norm(x))
        for letter in DELTA:
            mixed = model.blocks[layer].mixers[letter](source.mixer_norm(x))
            h = x + mixed
            h = h + source.mlp(source.mlp_norm(h))
            for block in teacher.blocks[layer + 1 :]:
                h = block(h, "F")[0]
            log_q = F.log_softmax(teacher.head(teacher.norm(h)).float(), -1)
            kl = torch.stack([F.kl_div(q, p, log_target=True, reduction="sum") for q, p in zip(log_q, log_p, strict=True)])
            error = (mixed - target).float().square().sum() / target.float().square().sum()
            yield {"mixer": letter, "layer": layer, "error": float(error), "kl": float(kl.sum()) / tokens.numel()}


def placements(layers: int) -> list[str]:
    """Pure placements and a few mixed ones."""
    few = max(1, layers // 5)
    mixed = ["F" * few + c * (layers - few) for c in DELTA] + [("F" + c) * layers for c in DELTA] + ["FSKG" * layers, "GKSF" * layers]
    return list(dict.fromkeys(p[:layers] for p in ["F" * layers, *(c * layers for c in MIXERS), *mixed]))


def compare(teacher: Supernet, train: list[Item], items: list[Item], length: int, layers: list[int], dtype: torch.dtype) -> pd.DataFrame:
    """All rows, see the top of the file. Calibration sees ``train`` only, every number comes from ``items``."""
    tokens, names, rows = packed(train, length), placements(teacher.config.layers), []
    judged = packed(items, min(length, sum(len(i.tokens) for i in items)))
    quick_teacher = Supernet(teacher.config).to(dtype).eval()
    quick_teacher.load_state_dict(teacher.state_dict())
    targets = sum(len(i.tokens) - i.prompt for i in items)
    for mapping in MAPPINGS:
        model = initialised(mapping, teacher, tokens).to(dtype)
        runs = progress(one_layer(model, quick_teacher, judged, layers), f"{mapping}: layers", len(layers) * len(DELTA))
        rows += [{"mapping": mapping, **row, "n_items": len(items), "n_tokens": judged.numel()} for row in runs]
        logp, _ = score(model, names, items, memory_bytes=4 << 30)
        rows += [
            {"mapping": mapping, "placement": name, "quality": row.sum() / targets, "n_items": len(items), "n_tokens": targets}
            for name, row in zip(names, logp, strict=True)
        ]
    columns = ["mapping", "placement", "mixer", "layer", "error", "kl", "quality", "n_items", "n_tokens"]
    return pd.DataFrame(rows)[columns].astype({"layer": "Int64"})


def table(frame: pd.DataFrame) -> str:
    """The README's table in Markdown: means over the replaced layers, and the trace log-likelihood of the pure placements."""
    single, whole = frame[frame["layer"].notna()], frame[frame["layer"].isna()]
    mean = single.groupby(["mapping", "mixer"])[["error", "kl"]].mean()
    lines = ["| start | KDA error | KDA KL | GDN error | GDN KL | all-SWA | all-KDA | all-GDN |", "|" + " --- |" * 8]
    for mapping in MAPPINGS:
        cells = [f"{mean.loc[(mapping, letter), column]:.3f}" for letter in DELTA for column in ("error", "kl")]
        own = whole[whole["mapping"] == mapping].set_index("placement")["quality"]
        cells += [f"{own[letter * len(own.index[0])]:.2f}" for letter in ("S", *DELTA)]
        lines.append(f"| {mapping} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Compare initialisations of the delta mixers before any training.")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a converted teacher")
    parser.add_argument("--train", type=Path, required=True, help="items that calibrate")
    parser.add_argument("--items", type=Path, required=True, help="items that judge")
    parser.add_argument("--out", type=Path, default=Path("results/135m/initialisation.csv"))
    parser.add_argument("--train-count", type=int, default=None, help="first items of --train (default: all)")
    parser.add_argument("--count", type=int, default=None, help="first items of --items (default: all)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a calibration row")
    parser.add_argument("--layers", type=int, nargs="+", default=None, help="layers to replace, one at a time (default: all)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the measurements; calibration is float32")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    a = arguments(argv)
    if a.length < 2:
        raise ValueError(f"--length is {a.length}: give at least 2 tokens")
    teacher = load_teacher(a.teacher)
    layers = sorted(set(a.layers if a.layers is not None else range(teacher.config.layers)))
    if not 0 <= layers[0] <= layers[-1] < teacher.config.layers:
        raise ValueError(f"--layers is {layers}: give numbers from 0 to {teacher.config.layers - 1}")
    frame = compare(teacher, read_items(a.train, a.train_count), read_items(a.items, a.count), a.length, layers, getattr(torch, a.dtype))
    with replacing(a.out) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    print(table(frame))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
