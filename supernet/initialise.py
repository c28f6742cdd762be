"""Teacher weights -> the mixers of a supernet. Shapes: N sequences, T tokens, D hidden, H heads, d head dimension, w convolution width.

``initialise`` needs the weights only. ``calibrate`` improves the delta mixers in closed form from a few sequences; nothing is random.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from supernet.decoder import Supernet
from supernet.mixers.attention import FullAttention
from supernet.mixers.delta import VALUE_TAP, GatedDeltaNet, KimiDeltaAttention

RETENTION = (0.3, 0.8, 0.95, 0.99)
"""What a head's state may keep per token at the start."""

BATCH = 8
"""Sequences that pass a mixer at once."""


def initialise(supernet: Supernet, teacher: Supernet) -> None:
    """Copy the shared weights and start every mixer from the attention of its layer. All-FA then equals the teacher.

    Raises ValueError when the teacher is not all-FA or its shapes differ from the supernet's.
    """
    _check(supernet, teacher)
    with torch.no_grad():
        for part in ("embed", "norm", "head"):
            getattr(supernet, part).load_state_dict(getattr(teacher, part).state_dict())
        for block, source in zip(supernet.blocks, teacher.blocks, strict=True):
            for part in ("mixer_norm", "mlp_norm", "mlp"):
                getattr(block, part).load_state_dict(getattr(source, part).state_dict())
            for mixer in block.mixers.values():
                mixer.init_from_attention(source.mixers["F"])


@torch.no_grad()
def calibrate(
    supernet: Supernet, teacher: Supernet, tokens: Tensor, ridge: float = 0.1, progress: Callable[[Iterable], Iterable] = iter
) -> None:
    """Start the delta mixers (KDA, GDN) of an initialised supernet from what the teacher's attention does on ``tokens`` [N, T].

    Layer by layer, on the teacher's own layer inputs x, without any gradient:

    1. the q, k, v biases of the teacher, which the delta mixers lack, are folded into the weights along the direction c
       with ``c . x`` nearest to 1 (least squares);
    2. the gate of head h is the linear map of x nearest to the size of the teacher's head output, which the mixer's norm removes;
    3. every head takes the retention, or the local start (its values averaged over the convolution, or the previous token's value),
       whose states predict the teacher's head output best (on a quarter of the sequences);
    4. the output projection is the ridge regression of the teacher's mixer output on the gated states; it shrinks towards the scaled
       projection of the teacher. ``ridge`` is relative to the mean square of the states.

    Deterministic given ``tokens``; some thousand tokens are enough for the widths of 135m. ``progress`` wraps the loop over layers.
    """
    _check(supernet, teacher)
    hidden = teacher.embed(tokens)
    for block, source in progress(list(zip(supernet.blocks, teacher.blocks, strict=True))):
        x = source.mixer_norm(hidden)
        attention = source.mixers["F"]
        heads, mixed = _through(attention, attention.o_proj, x)
        gate, constant = _gate(x, heads.unflatten(-1, (attention.config.heads, -1)))
        folded = _fold_biases(attention, constant)
        for mixer in block.mixers.values():
            if isinstance(mixer, KimiDeltaAttention | GatedDeltaNet):
                mixer.init_from_attention(folded)
                _choose_heads(mixer, x[::4], heads[::4], gate)
                _fit_output(mixer, x, mixed, ridge)
        hidden = hidden + mixed
        hidden = hidden + torch.cat([source.mlp(source.mlp_norm(h)) for h in hidden.split(BATCH)])


def _check(supernet: Supernet, teacher: Supernet) -> None:
    own, its = supernet.config, teacher.config
    if its.mixers != "F":
        raise ValueError(f"the teacher has mixers {its.mixers!r}: give an all-FA model (mixers 'F')")
    shapes = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "tied", "qkv_bias", "qk_norm", "rope", "norm_eps")
    for field in shapes:
        if getattr(own, field) != getattr(its, field):
            raise ValueError(f"model.{field} is {getattr(own, field)}, the teacher's is {getattr(its, field)}: make them equal")


def _output(mixer: nn.Module) -> nn.Linear:
    return mixer.out_proj if isinstance(mixer, GatedDeltaNet) else mixer.o_proj


def _through(mixer: nn.Module, projection: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """(what ``projection`` sees, what the mixer returns), by batches of sequences: [N, T, H d], [N, T, D]."""
    seen: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        out = torch.cat([mixer(part) for part in x.split(BATCH)])
    finally:
        hook.remove()
    return torch.cat(seen), out


def _solve(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """``argmin_W |X W - Y|^2 + ridge mean(diag X'X) |W|^2`` from X'X [..., n, n] and X'Y [..., n, m]. Raised to float64 inside."""
    gram, cross = gram.double(), cross.double()
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * ridge + torch.finfo(torch.float32).tiny
    return torch.linalg.solve(gram + size * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), cross)


def _gate(x: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """(gate directions [H, D], direction of the constant [D]). A head's gate follows its output's size and is 1 on average."""
    x, size = x.flatten(0, 1).float(), heads.flatten(0, 1).float().square().mean(-1).sqrt()  # [N T, D], [N T, H]
    target = torch.cat([size / size.mean(0).clamp(min=1e-12), torch.ones_like(size[:, :1])], 1)
    directions = _solve(x.T @ x, x.T @ target, 1e-3).T.float()
    return directions[:-1], directions[-1]


def _fold_biases(attention: FullAttention, constant: Tensor) -> FullAttention:
    """A copy whose q, k, v weights carry the biases: ``(W + b c') x = W x + b`` where ``c . x = 1``."""
    folded = copy.deepcopy(attention)
    for projection in (folded.q_proj, folded.k_proj, folded.v_proj):
        if projection.bias is not None:
            projection.weight += projection.bias[:, None] * constant.to(projection.weight.dtype)
    return folded


def _choose_heads(mixer: KimiDeltaAttention | GatedDeltaNet, x: Tensor, heads: Tensor, gate: Tensor) -> None:
    """Give every head the candidate of retention and value taps with the least error of ``heads`` regressed on its states."""
    H, width = len(gate), mixer.config.conv_width
    current, previous = torch.eye(width, device=x.device)[-1], torch.eye(width, device=x.device)[-min(2, width)]
    candidates = [(r, current) for r in RETENTION] + [(0.8, torch.ones(width, device=x.device) / width), (0.8, previous)]
    retention = torch.tensor([r for r, _ in candidates], device=x.device)
    taps = VALUE_TAP * torch.stack([t for _, t in candidates])
    Y = heads.unflatten(-1, (H, -1)).flatten(0, 1).transpose(0, 1).float()  # [H, N T, d]
    error = []
    for r, t in zip(retention, taps, strict=True):
        mixer.set_heads(r.expand(H), t.expand(H, width), gate)
        X = _through(mixer, _output(mixer), x)[0].unflatten(-1, (H, -1)).flatten(0, 1).transpose(0, 1).float()
        error.append((X @ _solve(X.mT @ X, X.mT @ Y, 0.01).float() - Y).square().sum((1, 2)))
    best = torch.stack(error).argmin(0)  # [H]
    mixer.set_heads(retention[best], taps[best], gate)


def _fit_output(mixer: KimiDeltaAttention | GatedDeltaNet, x: Tensor, mixed: Tensor, ridge: float) -> None:
    """Ridge regression of ``mixed`` on the gated states, shrunk towards the output projection's present direction, best scaled."""
    weight = _output(mixer).weight
    prior = weight.T.double()  # [H d, D]
    gram, cross = prior.new_zeros(len(prior), len(prior)), torch.zeros_like(prior)
    for part, target in zip(x.split(BATCH), mixed.split(BATCH), strict=True):
        X = _through(mixer, _output(mixer), part)[0].flatten(0, 1).float()
        gram += X.T @ X
        cross += X.T @ target.flatten(0, 1).float()
    scale = (prior * cross).sum() / (prior * (gram @ prior)).sum().clamp(min=1e-30)
    weight.copy_((scale * prior + _solve(gram, cross - gram @ prior * scale, ridge)).T)
