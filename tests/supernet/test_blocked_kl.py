"""Both divergences in one pass over blocks, values and gradients: against float64 and against autograd."""

import pytest
import torch

from supernet.ops import losses
from supernet.ops.blocked_kl import kl_rows, kl_sums


def exact(s, t):
    """Values [N] and gradients [N, V] by the definition in float64; terms of probability 0 count 0."""
    log_q, log_p = s.double().log_softmax(-1), t.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    f, r = (torch.where(a > 0, a * (x - y), 0.0).sum(-1) for a, x, y in ((p, log_p, log_q), (q, log_q, log_p)))
    d_r = torch.where(q > 0, q * (log_q - log_p - r[:, None]), 0.0)
    return f, r, q - p, torch.where(r.isinf()[:, None], 0.0, d_r)


def logits(seed, scale=4.0, n=5, v=333):
    random = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, v, generator=random) for _ in range(2)]


@pytest.mark.parametrize(
    "case", ["plain", "equal", "huge", "offset", "finfo.min", "one token", "ruled out by both", "by the teacher", "by the student"]
)
def test_rows_are_those_of_float64(case):
    s, t = logits(0, 1e4 if case == "huge" else 4.0, v=1 if case == "one token" else 333)
    if case == "equal":
        t = s.clone()
    if case == "offset":
        s, t = s + 1e4, t - 1e4
    if case == "finfo.min":
        s[:, ::3] = t[:, ::3] = torch.finfo(torch.float32).min
    if case in ("ruled out by both", "by the teacher"):
        t[0, ::2] = -torch.inf
    if case in ("ruled out by both", "by the student"):
        s[0, ::2] = -torch.inf
    kept = s.clone(), t.clone()
    found, right = kl_rows(s, t), exact(s, t)
    assert torch.equal(s, kept[0]) and torch.equal(t, kept[1])
    if case == "by the teacher":
        assert found[1][0] == torch.inf and (found[3][0] == 0).all()
    if case == "by the student":
        assert found[0][0] == torch.inf
    for a, b in zip(found, right, strict=True):
        scale = b[b.isfinite()].abs().max().clamp_min(1.0)
        torch.testing.assert_close(a.double() / scale, b / scale, atol=2e-6, rtol=2e-6)


def heads(trained):
    random = torch.Generator().manual_seed(1)
    made = [torch.nn.Linear(8, 50, bias=False) for _ in range(2)]
    for head in made:
        head.weight.data = torch.randn(50, 8, generator=random)
        head.requires_grad_(trained)
    return made


@pytest.mark.parametrize("tokens", [1, 7, 64, 150])
def test_the_loss_of_frozen_heads_and_its_gradient_are_those_of_autograd_on_all_logits(tokens, monkeypatch):
    random = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(1, tokens, 8, generator=random) for _ in range(2))
    mask = torch.rand(1, tokens, generator=random) < 0.7
    mask[0, 0] = True
    results = {}
    for trained in (False, True):
        used = []
        monkeypatch.setattr(losses, "kl_sums", lambda *a, used=used: used.append(1) or kl_sums(*a))
        hidden = student.clone().requires_grad_()
        forward, reverse = losses.kl_losses(hidden, teacher, *heads(trained), mask)
        (forward + 3 * reverse).backward()
        assert bool(used) is not trained
        results[trained] = [forward.detach(), reverse.detach(), hidden.grad]
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_gradients_by_gradcheck_and_blocks_change_nothing():
    random = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(9, 4, generator=random) for _ in range(2))

    def value(h, head, chunk):
        forward, reverse = kl_sums(kl_rows, h, teacher, head, head, chunk)
        return forward + 2 * reverse

    for head in (torch.nn.Identity(), torch.nn.Linear(4, 11).requires_grad_(False)):
        h = student.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(h, head, 4), h)
        (whole,) = torch.autograd.grad(value(h, head, 100), h)
        torch.testing.assert_close(gradient, whole, atol=1e-6, rtol=1e-6)
        head, steps = head.double(), 1e-6 * torch.eye(h.numel(), dtype=torch.float64).view(-1, *h.shape)

        def exactly(x, head=head):
            f, r, _, _ = exact(head(x), head(teacher.double()))
            return float((f + 2 * r).sum())

        differences = torch.tensor([(exactly(student.double() + d) - exactly(student.double() - d)) / 2e-6 for d in steps])
        torch.testing.assert_close(gradient.flatten(), differences.float(), atol=1e-4, rtol=1e-4)
