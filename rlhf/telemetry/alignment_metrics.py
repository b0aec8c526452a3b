"""The metrics of retrieval alignment, as (name, reduction, unit, meaning); declared in metrics.py."""

from typing import Literal

ALIGNMENT: tuple[tuple[str, Literal["mean", "sum", "max", "last"], str, str], ...] = (
    ("update/list_loss", "mean", "", "Mean loss of a list (of a pair, for supervised fine-tuning)."),
    ("update/replay_loss", "mean", "nats", "Contrastive loss on pictures with captions."),
    (
        "update/order_accuracy",
        "mean",
        "share",
        "Share of a list's comparisons that the policy's shift has right.",
    ),
    ("update/score_shift", "mean", "", "Mean distance of a listed image's score from the reference's."),
    ("order/images", "sum", "images", "Images embedded with gradient in the step."),
    (
        "order/teacher_agreement",
        "mean",
        "",
        "Rank correlation of the semantic and the judges' order within a list.",
    ),
    (
        "order/index_age",
        "max",
        "versions",
        "Weight versions since the gallery was embedded that a list is from.",
    ),
    (
        "eval/taste",
        "mean",
        "",
        "People's score of the first images of held-out queries; no judge in training sees it.",
    ),
    ("eval/taste_low", "mean", "", "Lower end of its 95 % interval, by bootstrap over queries."),
    ("eval/taste_high", "mean", "", "Upper end of its 95 % interval."),
    ("eval/precision", "mean", "share", "Share of the first images that answer the query."),
    ("eval/ndcg", "mean", "", "Normalised discounted gain, gain being relevance times taste."),
    ("eval/diversity", "mean", "", "Mean distance among the first images, in the start's embeddings."),
    ("eval/zero_shot", "mean", "share", "Share of pictures whose nearest class text is their own."),
    ("eval/recall_1", "mean", "share", "Share of captions whose picture comes first."),
    ("eval/recall_10", "mean", "share", "Share of captions whose picture is among the first ten."),
    ("eval/image_recall_1", "mean", "share", "Share of pictures whose caption comes first."),
    ("eval/image_recall_10", "mean", "share", "Share of pictures whose caption is among the first ten."),
    ("eval/judge_score", "mean", "", "The judges' weighted score of the first images."),
    ("eval/judge/*", "mean", "", "One judge's mean score of the first images."),
    (
        "eval/hacking_alarm",
        "max",
        "",
        "1 where judges have risen over three evaluations while taste or precision fell.",
    ),
)
