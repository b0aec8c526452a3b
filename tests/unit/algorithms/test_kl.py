import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algorithms.kl import KL_ESTIMATORS, k3, kl_terms, next_kl_coef
from tests.unit.algorithms import reference


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@given(seed=st.integers(0, 10_000))
def test_kl_terms_agree_with_the_slow_reference(estimator, seed):
    g = torch.Generator().manual_seed(seed)
    logprobs, ref, old = (-3 * torch.rand(3, 11, generator=g, dtype=torch.float64)).unbind()
    logprobs.requires_grad_()
    terms = kl_terms(logprobs, ref, log_ratio=logprobs - old, estimator=estimator)
    terms.sum().backward()
    slow = [
        reference.kl_value_and_gradient(x, ratio, estimator)
        for x, ratio in zip((logprobs - ref).tolist(), (logprobs - old).exp().tolist(), strict=True)
    ]
    values, gradients = torch.tensor(slow, dtype=torch.float64).unbind(1)
    torch.testing.assert_close(terms, values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logprobs.grad, gradients, rtol=1e-9, atol=1e-12)


def test_k3_is_never_negative_and_exact_near_zero():
    y = torch.tensor([-3.0, -1e-7, 0.0, 1e-7, 3.0], dtype=torch.float64)
    assert (k3(y) >= 0).all()
    assert k3(y)[3].item() == pytest.approx(5e-15, rel=1e-3, abs=0)


def test_kl_estimators_of_equal_policies_are_zero_with_zero_gradient():
    for estimator in ("k2", "k3", "k3_st", "k3_unbiased"):
        logprobs = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
        terms = kl_terms(
            logprobs, logprobs.detach(), log_ratio=logprobs - logprobs.detach(), estimator=estimator
        )
        terms.sum().backward()
        assert terms.tolist() == [0, 0]
        assert logprobs.grad.tolist() == [0, 0]


def test_value_estimators_average_to_the_exact_kl():
    g = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 6, generator=g, dtype=torch.float64).log_softmax(-1).unbind()
    exact = (p.exp() * (p - q)).sum()
    for estimator in ("k1", "k3", "k3_st", "k3_unbiased"):
        mean = (p.exp() * kl_terms(p, q, log_ratio=torch.zeros_like(p), estimator=estimator)).sum()
        torch.testing.assert_close(mean, exact)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (6.6, 0.1 * (1 + 0.1 * 0.05)), (60.0, 0.1 * 1.01), (0.0, 0.1 * 0.99), (5.4, 0.1 * 0.995)],
)
def test_next_kl_coef_moves_by_the_bounded_relative_error(kl, expected):
    assert next_kl_coef(0.1, kl, target=6.0, horizon=10_000.0, num_samples=500) == pytest.approx(
        expected, rel=1e-9
    )


@given(
    coef=st.floats(0, 10),
    kl=st.floats(-5, 5),
    target=st.floats(1e-3, 5),
    horizon=st.floats(1, 1e5),
    num_samples=st.integers(1, 999),
)
def test_next_kl_coef_agrees_with_the_formula(coef, kl, target, horizon, num_samples):
    error = (kl - target) / target
    error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
    expected = coef + coef * error * num_samples / horizon
    found = next_kl_coef(coef, kl, target=target, horizon=horizon, num_samples=num_samples)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
