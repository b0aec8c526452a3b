"""Casts against a search over all codes, and what must hold of any cast with a scale."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlhf.errors import PrecisionError
from rlhf.low_precision import (
    E4M3,
    E5M2,
    FLOAT16,
    Format,
    block_scales,
    dequantise,
    quantise,
    saturating_cast,
)

FP8 = pytest.mark.parametrize("form", [E4M3, E5M2], ids=["e4m3", "e5m2"])


def slow_values(form: Format) -> dict[int, float]:
    """Finite value of every code that has one, by the definition of its bits."""
    mantissa_bits, bias = (3, 7) if form is E4M3 else (2, 15)
    values = {}
    for code in range(256):
        sign = -1.0 if code & 0x80 else 1.0
        exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        whole = mantissa / (1 << mantissa_bits)
        if form is E4M3 and code & 0x7F == 0x7F:
            continue  # NaN: this format has no infinity
        if form is E5M2 and exponent == 31:
            continue  # infinity, NaN
        size = whole * 2.0 ** (1 - bias) if exponent == 0 else (1 + whole) * 2.0 ** (exponent - bias)
        values[code] = sign * size
    return values


def slow_cast(value: float, values: dict[int, float]) -> float:
    """The nearest value; of two as near, that of the even code; beyond the largest, the largest."""
    same_sign = {c: v for c, v in values.items() if math.copysign(1, v) == math.copysign(1, value)}
    return min(same_sign.items(), key=lambda item: (abs(item[1] - value), item[0] & 1))[1]


def random_values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(4 * torch.randn(*shape, generator=generator))
    return sizes * torch.randn(*shape, generator=generator).sign()


@FP8
def test_codes_mean_what_the_bits_of_the_format_say(form: Format) -> None:
    values = slow_values(form)
    codes = torch.tensor(list(values), dtype=torch.uint8).view(form.dtype)
    assert codes.float().tolist() == list(values.values())
    assert max(values.values()) == form.largest
    positive = sorted(v for v in values.values() if v > 0)
    assert positive[0] == form.spacing
    assert form.least_normal / form.spacing == (8 if form is E4M3 else 4)


@FP8
def test_cast_gives_the_nearest_code_ties_to_even_and_saturates(form: Format) -> None:
    values = slow_values(form)
    positive = sorted({v for v in values.values() if v >= 0})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(positive)]
    around = [x * (1 + d) for x in middles for d in (-1e-6, 0, 1e-6)]
    beyond = [form.largest * f for f in (1.001, 1.03, 1.0625, 1.1, 2.0, 1e6)]
    asked = [*positive, *around, *beyond, 1e-30]
    asked += [-x for x in asked]
    inputs = torch.tensor(asked, dtype=torch.float32)
    expected = [slow_cast(x, values) for x in inputs.tolist()]
    assert saturating_cast(inputs, form).float().tolist() == expected
    assert not saturating_cast(torch.tensor([math.inf, -math.inf]), form).float().isinf().any()


@pytest.mark.parametrize("form", [E4M3, E5M2, FLOAT16], ids=["e4m3", "e5m2", "float16"])
@pytest.mark.parametrize("block", [None, 8, 5, 100])
def test_quantised_values_keep_sign_order_and_error_bound(form: Format, block: int | None) -> None:
    values = random_values(6, 24)
    quantised = quantise(values, form, block=block)
    back = dequantise(quantised)
    assert back.shape == values.shape
    assert quantised.scales.shape == (() if block is None else (6, -(-24 // block)))
    assert torch.equal(dequantise(quantise(-values, form, block=block)), -back)
    half_step = {E4M3: 2**-4, E5M2: 2**-3, FLOAT16: 2**-11}[form]
    amax = values.abs().amax() if block is None else values.abs().amax(-1, keepdim=True)
    absolute = form.spacing / form.largest / 2 * amax
    assert ((back - values).abs() <= torch.maximum(half_step * values.abs(), absolute) * 1.0001).all()
    rows = zip(values, back, strict=True) if block == 100 else [(values.flatten(), back.flatten())]
    for before, after in rows if block in (None, 100) else ():
        assert (after[before.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("form", [E4M3, E5M2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("block", [None, 8])
def test_quantising_twice_changes_nothing_and_powers_of_two_pass_through(
    form: Format, block: int | None
) -> None:
    values = random_values(4, 16, seed=1)
    once = quantise(values, form, block=block)
    again = quantise(dequantise(once), form, block=block)
    torch.testing.assert_close(dequantise(again), dequantise(once), rtol=1e-6, atol=0)
    assert torch.equal(again.codes.view(torch.uint8), once.codes.view(torch.uint8))
    for power in (-20, 3, 40):
        scaled = quantise(values * 2.0**power, form, block=block)
        assert torch.equal(scaled.codes.view(torch.uint8), once.codes.view(torch.uint8))
        assert torch.equal(scaled.scales, once.scales * 2.0**power)


def test_scales_of_powers_of_two_are_the_least_that_hold_the_largest() -> None:
    values = torch.cat([random_values(50, 3), torch.tensor([[448.0, 1, 1], [448.1, 1, 1], [7.0, 0, 0]])])
    scales = block_scales(values, E4M3, block=3, power_of_two=True)[:, 0]
    amax = values.abs().amax(-1)
    assert torch.equal(scales, torch.exp2(torch.log2(scales).round()))
    assert (amax / scales <= 448).all()
    assert (amax / (scales / 2) > 448).all()


def test_zeros_and_the_smallest_numbers_have_a_scale() -> None:
    values = torch.tensor([[0.0] * 4, [1e-45] * 4, [1e-38, 0, 0, 0], [3e38, 1, 0, 0]])
    back = dequantise(quantise(values, E4M3, block=4))
    assert back.isfinite().all()
    assert torch.equal(back[0], values[0])
    torch.testing.assert_close(back[2:], torch.tensor([[1e-38, 0, 0, 0], [3e38, 0, 0, 0]]), rtol=0.07, atol=0)
    assert dequantise(quantise(torch.zeros(0, 4), E4M3)).shape == (0, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("block", [None, 2])
def test_nan_and_infinity_are_refused(bad: float, block: int | None) -> None:
    with pytest.raises(PrecisionError, match="holds NaN or infinity"):
        quantise(torch.tensor([[1.0, bad, 2.0]]), E4M3, block=block)


def test_bfloat16_is_quantised_as_the_float32_it_is() -> None:
    values = random_values(3, 40).bfloat16()
    ours, exact = quantise(values, E4M3, block=40), quantise(values.float(), E4M3, block=40)
    assert torch.equal(dequantise(ours), dequantise(exact))
