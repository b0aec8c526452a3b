"""Rows of public preference data sets as pairs {prompt, chosen, rejected}: functions for a source's `mapper`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.errors import DataError

MARGIN = 1.0
"""DeepSeek-R1 keeps the pairs whose judged scores differ by more than this (arXiv 2501.12948v2, helpful data)."""


def ultrafeedback_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """UltraFeedback, binarized: {prompt, chosen, rejected (conversations), score_chosen, score_rejected, ...}.

    Left out: pairs whose scores, 1 to 10, differ by MARGIN or less, and pairs of equal texts.
    """
    margin = float(row["score_chosen"]) - float(row["score_rejected"])
    chosen, rejected = (_answer(row, side) for side in ("chosen", "rejected"))
    if margin <= MARGIN or chosen == rejected:
        return None
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "margin": margin}


def _answer(row: Mapping[str, Any], side: str) -> str:
    conversation = row[side]
    is_list = isinstance(conversation, Sequence) and not isinstance(conversation, str)
    roles = [message["role"] for message in conversation] if is_list else type(conversation).__name__
    if roles != ["user", "assistant"]:
        raise DataError(f"{side} has the turns {roles}, expected one question and one answer.")
    return str(conversation[1]["content"])
