import numpy as np
import pytest

from rewards.colour_grids import (
    COLOURS,
    agreement,
    codebook,
    demonstrations,
    is_right,
    named,
    picture,
    requests,
)
from rlhf.types import Message, Prompt, Trajectory, Turn

BLUE, RED = "<c4>", "<c0>"


def judged(text, reference="red blue red blue"):
    prompt = Prompt(id="p", messages=(Message(role="user", content="x"),), reference=reference)
    turn = Turn(message=Message(role="assistant", content=text), segment=0, start=0, stop=0)
    attempt = Trajectory(segments=(), turns=(turn,), stop="stop", sample_index=0, seed=0)
    right = is_right(prompt, attempt)
    return right.value, right.outcome, agreement(prompt, attempt)


def drawn(*rows):
    return "rbrb<boi>" + "".join("".join(row) for row in rows)


def test_a_picture_has_the_patches_of_its_codes_in_reading_order():
    image = np.asarray(picture("".join(["<boi>", *(f"<c{i}>" for i in range(16))])))
    assert image.shape == (32, 32, 3)
    for code, patch in enumerate(codebook()):
        down, right = divmod(code, 4)
        assert (image[8 * down : 8 * down + 8, 8 * right : 8 * right + 8] == patch).all()


def test_the_judge_names_both_shades_of_every_colour():
    names = named(picture("<boi>" + "".join(f"<c{i}>" for i in range(16))))[::8, ::8].flatten()
    assert [list(COLOURS)[name] for name in names] == [colour for colour in COLOURS for _ in range(2)]


def test_a_picture_of_what_was_asked_is_right():
    assert judged(drawn(*[[RED, "<c1>", BLUE, "<c5>"]] * 4)) == (1.0, "ok", 1.0)


def test_the_share_of_right_pixels_is_paid():
    assert judged(drawn(*[[RED] * 4] * 4)) == (0.0, "wrong", 0.5)


@pytest.mark.parametrize("text", ["", "rbrb", "rbrb<boi><c0>", "<boi>" + RED * 8 + "x" + RED * 8, RED * 16])
def test_no_whole_picture_is_unparsable(text):
    assert judged(text) == (0.0, "unparsable", 0.0)


def test_careful_demonstrations_are_right():
    references = {row["id"]: row["reference"] for row in requests(3, 3000)}
    for row in demonstrations(3, 50):
        assert judged(row["completion"], references[row["prompt"]])[0] == 1.0


def test_careless_ones_spoil_the_last_quarter_and_noise_is_spread():
    references = {row["id"]: row["reference"] for row in requests(0, 3000)}

    def share(**options):
        rows = demonstrations(0, 400, **options)
        return sum(judged(row["completion"], references[row["prompt"]])[2] for row in rows) / len(rows)

    assert share(careless=1.0) == pytest.approx(1 - 0.25 * 7 / 8, abs=0.02)
    assert share(noise=0.2) == pytest.approx(1 - 0.2 * 7 / 8, abs=0.02)


def test_unconditional_demonstrations_say_nothing_but_the_picture():
    rows = demonstrations(0, 400, unconditional=0.25)
    blank = [row for row in rows if "<pad>" in row["prompt"]]
    assert 60 < len(blank) < 140
    for row in blank:
        assert set(row["prompt"].split("<pad>")) == {""}
        assert row["completion"].startswith("<pad>" * 4 + "<boi>")
        assert row["prompt"].count("<pad>") == len(row["id"].split(" ", 2)[2])


def test_heldout_requests_are_in_no_training_set():
    heldout = {row["id"] for row in requests(0, 500, split="heldout")}
    assert not heldout & {row["id"] for seed in range(2) for row in requests(seed, 3000)}
    with pytest.raises(ValueError, match="expected 4000"):
        requests(0, 4000)
