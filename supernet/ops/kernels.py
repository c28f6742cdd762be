"""Which kernels compute the delta rule: one dispatch, and the test that a way must pass before it is used on a new machine.

| way       | KDA (a decay per channel) | GDN (a decay per head)                        | one decode step, without gradient    |
| --------- | ------------------------- | --------------------------------------------- | ------------------------------------ |
| `torch`   | chunked, float32          | chunked, float32                              | recurrent, float32                   |
| `numba`   | token by token, float32   | token by token, float32                       | the same                             |
| `fla`     | fla's chunk_kda           | fla's chunk_gated_delta_rule                  | fla's fused_recurrent_*              |
| `fla-kda` | fla's chunk_kda           | chunk_kda, each channel with the head's decay | fla's fused_recurrent_kda            |

`numba` is compiled loops for a CPU (``numba_delta.py``), 4 to 6 times faster there than `torch`, which is the way that works everywhere.
Without gradients it does more than the delta rule: whole mixers, norms, MLPs and the loss (``fused``).
`fla` is fla-core 0.6.0 (Triton, CUDA only). A tensor on a device that the chosen way is not for takes `torch`.
`fla-kda` is the way out where Triton 3.4 to 3.7.0 computes wrong gradients of GDN on Hopper: KDA's backward is other code. Unlike fla's
layers nothing here switches kernels with the length: whole sequences always take the chunked kernels. Shapes as in ``delta_rule.py``, but
q and k may have fewer heads than v [B, T, H, V]: value head h reads q and k of head h // (H / their heads).

``python -m supernet.ops.kernels fla bfloat16 64,64,64`` prints the relative errors of a way.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.ops.delta_rule import delta_rule_chunked, delta_rule_recurrent

WAYS = ("torch", "numba", "fla", "fla-kda")

ON = {"torch": ("cpu", "cuda"), "numba": ("cpu",), "fla": ("cuda",), "fla-kda": ("cuda",)}
"""The devices that a way is for."""

TOLERANCE = {"float32": 0.01, "bfloat16": 0.03}
"""Largest relative error (norm of the difference over norm of the reference) of a way that may be used. float32 leaves room for TF32."""

CPU_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03}
"""The same of a way for a CPU, where float32 is float32."""

WIDE = 1024
"""Logits of a row from which on the loss in one pass is faster: fewer stay in the cache, where torch goes over them as fast."""

TOKENS = 200
"""Length of the self-test: three whole chunks of 64 and a part of one."""

_way = "torch"


def use(way: str) -> None:
    """Choose the way of this process. Raises ValueError on an unknown one."""
    global _way
    if way not in WAYS:
        raise ValueError(f"no kernels {way!r}: choose from {', '.join(WAYS)}")
    _way = way


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The path that models call: q, k [B, T, H or fewer, K], v [B, T, H, V], g [B, T, H, K or 1], beta [B, T, H] -> [B, T, H, V].

    Differentiable. Decays, betas and the state are float32 on every way: bf16 decays round to 1.
    """
    return run(_for(v), q, k, v, g, beta)[0]


def delta_rule_from(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same from a state [B, H, K, V] on: (o [B, T, H, V], the state after the last token). One token takes the recurrent kernels."""
    return run(_for(v), q, k, v, g, beta, state)


def fused(x: Tensor) -> bool:
    """Whether several operations on x may be one compiled pass without gradients: ``numba_mixing``, ``numba_attention``, ``numba_rows``."""
    plain = x.dtype in (torch.float32, torch.bfloat16) and not torch.is_autocast_enabled(x.device.type)
    return _for(x) == "numba" and plain and not torch.is_grad_enabled()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last axis, in float32 whatever the input: [..., C], weight [C] -> [..., C]."""
    if fused(x):
        from supernet.ops import numba_rows  # imports numba

        return numba_rows.rms_norm(x, weight, eps)
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, both [..., C]. ``gate`` may be written over: it is not to be used afterwards."""
    if fused(gate):
        from supernet.ops import numba_rows

        return numba_rows.swiglu(gate, up)
    return F.silu(gate) * up


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``layers.rotate`` where ``fused(x)``: [B, H, T, d], float32 cosines and sines [T, d / 2] -> [B, H, T, d]."""
    from supernet.ops import numba_rows

    return numba_rows.rotate(x, cos, sin)


def head_loss(x: Tensor, weight: Tensor, targets: Tensor, at_once: int) -> Tensor:
    """Minus the log-probability of each row's target in nats, float32, of a head without bias: [R, D], [V, D] and [R] -> [R].

    ``at_once``: logits whose float32 and log-probabilities may be held; in one pass, without them, three times as many.
    """
    if fused(x) and len(weight) >= WIDE:
        from supernet.ops import numba_rows

        size, loss = 3 * at_once // numba_rows.BLOCK, numba_rows.head_loss
    else:
        size, loss = at_once // len(weight), lambda x, w, t: F.cross_entropy(F.linear(x, w).float(), t, reduction="none")
    size = max(1, size)
    return torch.cat([loss(rows, weight, t) for rows, t in zip(x.split(size), targets.split(size), strict=True)])


def _for(v: Tensor) -> str:
    return _way if v.device.type in ON[_way] else "torch"


def run(way: str, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(o, final state) by one way, whatever the device; without a ``state`` the final state of the fla ways is None."""
    one_step = q.shape[1] == 1 and state is not None and not torch.is_grad_enabled()
    with torch.autocast(q.device.type, enabled=False):
        if way == "torch":
            q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) if x.shape[2] < v.shape[2] else x for x in (q, k))
            return (delta_rule_recurrent if one_step else delta_rule_chunked)(q, k, v, g, beta, state)
        if way == "numba":
            from supernet.ops.numba_delta import delta_rule_numba  # imports numba, which takes half a second

            return delta_rule_numba(q, k, v, g, beta, state)
        kda = way == "fla-kda" or g.shape[-1] > 1
        return fla_function(kda, one_step)(**fla_arguments(kda, q, k, v, g, beta, state))


def fla_function(kda: bool, one_step: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function of fla-core; its import takes seconds, so it is put off until a kernel is needed."""
    os.environ["FLA_DISABLE_BACKEND_DISPATCH"] = "1"  # no other vendor's kernels behind our back; read when fla is imported
    if kda:
        from fla.ops import kda as kda_ops

        return kda_ops.fused_recurrent_kda if one_step else kda_ops.chunk_kda
    from fla.ops import gated_delta_rule as gdn_ops

    return gdn_ops.fused_recurrent_gated_delta_rule if one_step else gdn_ops.chunk_gated_delta_rule


def fla_arguments(kda: bool, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None) -> dict[str, Any]:
    """Our tensors as fla-core 0.6.0 means them, by keyword: the orders of its functions' arguments differ.

    Batch, time, head, channel order; natural log decays, [B, T, H, K] for KDA and [B, T, H] for GDN; q is scaled and q, k are of unit
    length already. Its matrix products want q, k and v of one type, which is v's.
    """
    g = g.expand(*g.shape[:-1], q.shape[-1]) if kda else g.squeeze(-1)
    return {
        "q": q.to(v.dtype).contiguous(),
        "k": k.to(v.dtype).contiguous(),
        "v": v.contiguous(),
        "g": g.float().contiguous(),
        "beta": beta.float().contiguous(),
        "scale": 1.0,
        "initial_state": None if state is None else state.float().contiguous(),
        "output_final_state": state is not None,
        "use_qk_l2norm_in_kernel": False,
    }


def describe(way: str) -> str:
    """What a manifest says of a way."""
    if way == "torch":
        return "chunked torch"
    from importlib.metadata import version

    if way == "numba":
        return f"numba {version('numba')}: token by token"
    gdn = "chunk_kda with constant decay" if way == "fla-kda" else "chunk_gated_delta_rule"
    return f"fla-core {version('fla-core')}: chunk_kda, {gdn}"


def self_test(way: str, dtype: str, dims: tuple[int, int, int], device: str) -> dict[str, float]:
    """Relative errors of a way against ``delta_rule_recurrent`` in float32: of outputs, states, every gradient, and a decode step.

    ``dims``: GDN's key and value dimension and KDA's dimension, the shapes that the kernels are compiled for.
    """
    errors = {}
    for name, K, V, channels in (("gdn", dims[0], dims[1], 1), ("kda", dims[2], dims[2], dims[2])):
        inputs, weight = _case(K, V, channels, getattr(torch, dtype), device)
        found, expected = (_gradients(w, inputs, weight) for w in (way, "reference"))
        with torch.no_grad():
            *first, state = inputs
            first = [x[:, :1] for x in first]
            found |= dict(zip(("step", "step state"), run(way, *first, state), strict=True))
            expected |= dict(zip(("step", "step state"), _reference(*first, state), strict=True))
        for quantity, a in found.items():
            b = expected[quantity].double()
            errors[f"{name} {quantity}"] = float((a.double() - b).norm() / b.norm())
    return errors


def _case(K: int, V: int, channels: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor]:
    """Random inputs as mixers make them, q and k with half of v's heads where the decay is per head; and the weights of a loss."""
    generator = torch.Generator().manual_seed(0)
    B, T, H = 2, TOKENS, 4
    few = H if channels > 1 else H // 2
    q, k = (torch.nn.functional.normalize(torch.randn(B, T, few, K, generator=generator), dim=-1) for _ in range(2))
    v, weight = torch.randn(B, T, H, V, generator=generator), torch.randn(B, T, H, V, generator=generator)
    strength = torch.tensor([0.03, 0.1, 0.3, 1.0])[:, None]  # one per head: mean decays of 0.985 to 0.6 per token
    g = -strength * torch.rand(B, T, H, channels, generator=generator)
    beta, state = torch.rand(B, T, H, generator=generator), torch.randn(B, H, K, V, generator=generator)
    low = [x.to(device, dtype) for x in (q, k, v)]
    return [*low, g.to(device), beta.to(device), state.to(device)], weight.to(device)


def _reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    q, k = (x.float().repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    return delta_rule_recurrent(q, k, v, g, beta, state)


def _gradients(way: str, inputs: list[Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Output, final state and the gradients of a weighted sum of both."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    output, state = _reference(*inputs) if way == "reference" else run(way, *inputs)
    ((output.float() * weight).sum() + state.square().sum() / 10).backward()
    names = ("d_q", "d_k", "d_v", "d_g", "d_beta", "d_state")
    return {"output": output.detach(), "state": state.detach(), **{n: x.grad for n, x in zip(names, inputs, strict=True)}}


def tolerance(way: str, dtype: str) -> float:
    """The largest relative error of a way that may be used."""
    return (TOLERANCE if "cuda" in ON[way] else CPU_TOLERANCE)[dtype]


def failures(errors: dict[str, float], dtype: str, way: str = "fla") -> list[str]:
    """What is beyond the tolerance, not-a-number included."""
    return [name for name, error in errors.items() if not error <= tolerance(way, dtype)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m supernet.ops.kernels", description="Relative errors of one way of the delta rule.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("dtype", choices=list(TOLERANCE))
    parser.add_argument("dims", type=lambda text: tuple(map(int, text.split(","))), help="GDN key, GDN value and KDA dimension: 64,64,64")
    parser.add_argument("--json", action="store_true", help="the errors as JSON, for another program")
    arguments = parser.parse_args()
    if len(arguments.dims) != 3:
        parser.error("dims are three numbers: GDN's key and value dimension and KDA's, e.g. 64,64,64")
    device = "cuda" if torch.cuda.is_available() and "cuda" in ON[arguments.way] else "cpu"
    if device not in ON[arguments.way]:
        sys.exit(f"error: {arguments.way} needs a CUDA GPU and torch sees none: give torch instead")
    errors = self_test(arguments.way, arguments.dtype, arguments.dims, device)
    if arguments.json:
        print(json.dumps(errors))
        return
    for name, error in errors.items():
        print(f"{name:16} {error:.2e}")
    failed = failures(errors, arguments.dtype, arguments.way)
    print(f"tolerance {tolerance(arguments.way, arguments.dtype)}: " + (f"failed by {', '.join(failed)}" if failed else "passed"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
