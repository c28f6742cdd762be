import inspect
import json
import subprocess
import sys

import pytest
import torch

from supernet.ops import kernels
from supernet.ops.delta_rule import delta_rule_chunked, delta_rule_recurrent

DIMS = (6, 5, 4)


@pytest.fixture
def fla(monkeypatch):
    """fla-core's functions, each replaced by its own naive reference behind the signature of the kernel; calls are recorded by name."""
    monkeypatch.setenv("FLA_DISABLE_BACKEND_DISPATCH", "1")
    pytest.importorskip("fla", reason="fla-core is not installed: pip install -e '.[kernels]'")
    from fla.ops import gated_delta_rule, kda
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.kda.naive import naive_recurrent_kda

    calls = []
    monkeypatch.setattr(kernels, "TOKENS", 70)  # one token at a time is slow

    def stand_in(module, name, naive):
        signature = inspect.signature(getattr(module, name))

        def function(**arguments):
            bound = signature.bind(**arguments)
            bound.apply_defaults()
            a = bound.arguments
            calls.append((name, a))
            assert not a["use_qk_l2norm_in_kernel"] and not a["use_beta_sigmoid_in_kernel"] and not a["state_v_first"]
            assert not a.get("use_gate_in_kernel") and a["cu_seqlens"] is None
            tensors = [a[x] for x in ("q", "k", "v", "g", "beta", "initial_state") if a[x] is not None]
            assert all(x.is_contiguous() for x in tensors)
            assert a["q"].dtype == a["k"].dtype == a["v"].dtype and a["g"].dtype == a["beta"].dtype == torch.float32
            heads = a["v"].shape[2]
            q, k = (x.repeat_interleave(heads // x.shape[2], 2) for x in (a["q"], a["k"]))  # the kernels read head h // group
            o, state = naive(q=q, k=k, **{x: a[x] for x in ("v", "g", "beta", "scale", "initial_state", "output_final_state")})
            return o.to(a["v"].dtype), state

        monkeypatch.setattr(module, name, function)

    for name in ("chunk_kda", "fused_recurrent_kda"):
        stand_in(kda, name, naive_recurrent_kda)
    for name in ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"):
        stand_in(gated_delta_rule, name, naive_recurrent_gated_delta_rule)
    return calls


@pytest.mark.parametrize("way", ["fla", "fla-kda"])
def test_what_we_hand_to_fla_means_the_same_there(way, fla):
    """fla's own references, called as its kernels would be, give our outputs, states, gradients and decode steps."""
    errors = kernels.self_test(way, "float32", DIMS, "cpu")
    assert len(errors) == 20 and max(errors.values()) < 1e-5
    assert kernels.failures(kernels.self_test(way, "bfloat16", DIMS, "cpu"), "bfloat16") == []


@pytest.mark.parametrize(
    "way, names",
    [
        ("fla", ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule", "chunk_kda", "fused_recurrent_kda"]),
        ("fla-kda", ["chunk_kda", "fused_recurrent_kda", "chunk_kda", "fused_recurrent_kda"]),
    ],
)
def test_each_way_calls_the_kernels_it_says(way, names, fla):
    kernels.self_test(way, "bfloat16", DIMS, "cpu")
    assert [name for name, _ in fla] == names
    for _, a in fla:
        assert a["scale"] == 1.0 and a["output_final_state"] and a["v"].dtype == torch.bfloat16
    gdn, kda = fla[0][1], fla[2][1]
    assert gdn["q"].shape[2] * 2 == gdn["v"].shape[2]  # grouped heads are not repeated for the kernels
    assert gdn["g"].shape == ((2, kernels.TOKENS, 4) if way == "fla" else (2, kernels.TOKENS, 4, DIMS[0]))
    assert kda["g"].shape == (2, kernels.TOKENS, 4, DIMS[2])


@pytest.mark.parametrize("broken", ["scale", "decay"])
def test_a_kernel_that_computes_something_else_fails_the_self_test(broken, fla, monkeypatch):
    from fla.ops import gated_delta_rule

    right = gated_delta_rule.chunk_gated_delta_rule

    def wrong(**arguments):
        if broken == "scale":
            return right(**arguments | {"scale": None})
        g = arguments["g"]
        return right(**arguments | {"g": 1.1 * g - 0.1 * g.detach()})  # the outputs are right, a gradient is not

    monkeypatch.setattr(gated_delta_rule, "chunk_gated_delta_rule", wrong)
    failed = kernels.failures(kernels.self_test("fla", "float32", DIMS, "cpu"), "float32")
    assert ("gdn output" in failed) == (broken == "scale") and "gdn d_g" in failed
    assert not any(name.startswith("kda") for name in failed)


def test_an_error_that_is_not_a_number_fails():
    assert kernels.failures({"a": float("nan"), "b": 0.0, "c": 0.02}, "float32") == ["a", "c"]


@pytest.mark.parametrize("per_channel", [True, False])
def test_tensors_on_a_cpu_take_torch_whatever_was_chosen_and_decoding_continues_a_sequence(per_channel, monkeypatch):
    monkeypatch.setattr(kernels, "_way", "torch")
    kernels.use("fla")
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.nn.functional.normalize(torch.randn(2, 21, 2, 6, generator=generator), dim=-1) for _ in range(2))
    v = torch.randn(2, 21, 4, 5, generator=generator)
    g, beta = -torch.rand(2, 21, 4, 6 if per_channel else 1, generator=generator), torch.rand(2, 21, 4, generator=generator)
    repeated = [x.repeat_interleave(2, 2) for x in (q, k)]
    whole = kernels.delta_rule(q, k, v, g, beta)
    assert torch.equal(whole, delta_rule_chunked(*repeated, v, g, beta)[0])
    state, parts = torch.zeros(2, 4, 6, 5), []
    with torch.no_grad():
        for piece in [slice(0, 17), *(slice(t, t + 1) for t in range(17, 21))]:
            o, state = kernels.delta_rule_from(*(x[:, piece] for x in (q, k, v, g, beta)), state)
            parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state, delta_rule_recurrent(*repeated, v, g, beta)[1], atol=1e-6, rtol=1e-5)


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="no kernels 'cuda': choose from torch, numba, fla, fla-kda"):
        kernels.use("cuda")


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "supernet.ops.kernels", *arguments], capture_output=True, text=True, timeout=600)


def test_the_command_prints_every_error_and_whether_they_pass():
    done = command("torch", "bfloat16", "16,8,32")
    assert done.returncode == 0 and done.stdout.count("\n") == 21 and done.stdout.endswith("tolerance 0.03: passed\n")
    errors = json.loads(command("torch", "float32", "6,5,4", "--json").stdout)
    assert 0 < max(errors.values()) < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_in_one_line_that_there_is_no_gpu():
    done = command("fla", "bfloat16", "64,64,64")
    assert done.returncode == 1 and done.stderr == "error: fla needs a CUDA GPU and torch sees none: give torch instead\n"
