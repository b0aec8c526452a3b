"""Casts to 8 and 16 bits with a scale: per tensor, or per block of neighbours in the last dimension.

Formats and their use in training: FP8-LM, arXiv 2310.18313. A scale is what a code is multiplied by to give back
the value, amax / largest; the paper's scaling factor is its inverse.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf.errors import PrecisionError

_LEAST_SCALE = 2.0**-126
"""The smallest normal float32: a block of zeros gets it, and zeros as codes."""


@dataclass(frozen=True, slots=True)
class Format:
    """A floating-point type that is narrower than float32."""

    dtype: torch.dtype
    largest: float
    """Finite magnitude."""
    least_normal: float
    """Magnitude below which codes are evenly spaced."""
    spacing: float
    """Distance of two codes there."""


E4M3 = Format(torch.float8_e4m3fn, 448.0, 2.0**-6, 2.0**-9)
E5M2 = Format(torch.float8_e5m2, 57344.0, 2.0**-14, 2.0**-16)
FLOAT16 = Format(torch.float16, 65504.0, 2.0**-14, 2.0**-24)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Codes and the scales that give them back their size."""

    codes: Tensor
    scales: Tensor
    """float32: [] of a whole tensor, else [..., blocks]."""
    block: int | None


def quantise(values: Tensor, form: Format, *, block: int | None = None) -> Quantised:
    """The nearest codes of `values`, which are read as float32. One scale, or one per `block` of the last dimension.

    Raises PrecisionError for NaN and infinity: neither has a scale.
    """
    scales = block_scales(values, form, block=block)
    if not bool(scales.isfinite().all()):
        raise PrecisionError(
            f"a tensor of shape {tuple(values.shape)} that is to become {form.dtype} holds NaN or infinity. "
            "Expected finite numbers: look for what diverged before this."
        )
    scaled = values.float() / spread(scales, values, block)
    return Quantised(saturating_cast(scaled, form), scales, block)


def dequantise(quantised: Quantised) -> Tensor:
    """float32 values of the codes."""
    codes = quantised.codes.float()
    return codes * spread(quantised.scales, codes, quantised.block)


def saturating_cast(values: Tensor, form: Format) -> Tensor:
    """Nearest codes, ties to even; what is beyond the largest becomes the largest, with its sign. NaN stays NaN.

    The clamp is ours: a bare cast of 460 gives 448, infinity or NaN, as format, device and build have it.
    """
    return values.float().clamp(-form.largest, form.largest).to(form.dtype)


def block_scales(values: Tensor, form: Format, *, block: int | None, power_of_two: bool = False) -> Tensor:
    """float32 scales that put the largest magnitude of the tensor ([]) or block ([..., blocks]) at `form.largest`.

    Powers of two put it at most a factor of 2 below, and change no digit of what is scaled.
    """
    magnitudes = values.detach().float().abs()
    if block is None:
        amax = magnitudes.amax() if magnitudes.numel() else magnitudes.new_zeros(())
    else:
        filled = pad(magnitudes, (0, -magnitudes.shape[-1] % block))
        amax = filled.view(*filled.shape[:-1], filled.shape[-1] // block, block).amax(-1)
    scales = amax / form.largest
    if power_of_two:
        digits, exponents = torch.frexp(scales)
        scales = torch.ldexp(torch.where(digits == 0.5, digits, torch.ones_like(digits)), exponents)
    return scales.clamp_min(_LEAST_SCALE)


def spread(scales: Tensor, like: Tensor, block: int | None) -> Tensor:
    """The scale of each value: scales as they are ([]), or repeated over the blocks of `like`'s last dimension."""
    if block is None:
        return scales
    return scales.repeat_interleave(block, -1)[..., : like.shape[-1]]
