import pytest
import torch

from supernet.ops import losses
from supernet.ops.losses import activation_error, kl_losses


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 9, 8, generator=g) for _ in range(2))
    head = torch.nn.Linear(8, 11, bias=False)
    head.weight.data = torch.randn(11, 8, generator=g) * 3
    mask = torch.rand(2, 9, generator=g) < 0.7
    return student.requires_grad_(), teacher, head, mask


def test_kl_equals_its_definition_in_both_directions():
    student, teacher, head, mask = inputs()
    p, q = (head(x).double().log_softmax(-1)[mask] for x in (teacher, student))
    forward, reverse = kl_losses(student, teacher, head, head, mask)
    assert forward.item() == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    assert reverse.item() == pytest.approx((q.exp() * (q - p)).sum(-1).mean().item(), rel=1e-5)


def test_chunks_change_neither_value_nor_gradient(monkeypatch):
    results = []
    for chunk in (1000, 3):
        monkeypatch.setattr(losses, "CHUNK", chunk)
        student, teacher, head, mask = inputs()
        f, r = kl_losses(student, teacher, head, head, mask)
        (f + 2 * r).backward()
        results.append((f.item(), r.item(), student.grad))
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-6)
    torch.testing.assert_close(results[0][2], results[1][2])


def ruled_out(both):
    """Logits with tokens that the teacher rules out in its first row: (student, teacher), and ``both`` says whether the student does."""
    g = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(1, 3, 50, generator=g) for _ in range(2))
    teacher[0, 0, 7:9] = -torch.inf
    if both:
        student[0, 0, 7:9] = -torch.inf
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("chunk", [512, 1])
@pytest.mark.parametrize("both", [True, False])
def test_tokens_that_are_ruled_out_count_nothing_where_their_probability_is_0(both, chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    (student, teacher), mask = ruled_out(both), torch.ones(1, 3, dtype=torch.bool)
    forward, reverse = kl_losses(student, teacher, lambda x: x, lambda x: x, mask)
    log_q, log_p = (x.detach().double().log_softmax(-1)[0] for x in (student, teacher))
    p, q = log_p.exp(), log_q.exp()
    by_row = torch.where(q > 0, q * (log_q - log_p), 0.0).sum(-1)
    assert forward.item() == pytest.approx(torch.where(p > 0, p * (log_p - log_q), 0.0).sum().item() / 3, rel=1e-5)
    assert reverse.item() == (pytest.approx(by_row.mean().item(), rel=1e-5) if both else float("inf"))
    (of_forward,) = torch.autograd.grad(forward, student, retain_graph=True)
    torch.testing.assert_close(of_forward[0].double(), (q - p) / 3, atol=1e-7, rtol=1e-5)
    (of_reverse,) = torch.autograd.grad(reverse, student)
    expected = torch.where(q > 0, q * (log_q - log_p - by_row[:, None]), 0.0) / 3
    expected[by_row.isinf()] = 0.0  # an infinite divergence has no direction down: none is given
    torch.testing.assert_close(of_reverse[0].double(), expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["relative", "l2"])
def test_activation_error_is_zero_and_differentiable_at_equality_and_ignores_masked_tokens(kind):
    _, teacher, _, mask = inputs()
    student = teacher.clone().requires_grad_()
    error = activation_error(student, teacher, mask, kind)
    error.backward()
    assert error.item() < 1e-5 and student.grad.isfinite().all()
    broken = teacher.clone()
    broken[~mask] += 100
    assert activation_error(broken, teacher, mask, kind).item() < 1e-5


def test_activation_errors_follow_their_definitions():
    teacher, mask = torch.tensor([[[3.0, 4.0], [6.0, 8.0]]]), torch.ones(1, 2, dtype=torch.bool)
    student = teacher + torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])
    assert activation_error(student, teacher, mask, "relative").item() == pytest.approx(5 / 125)
    assert activation_error(student, teacher, mask, "l2").item() == pytest.approx(1.5)
