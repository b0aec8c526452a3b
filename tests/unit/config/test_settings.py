from collections.abc import Sequence

import pytest

from rlhf.config.settings import checked_settings
from rlhf.errors import ConfigError


def term(inputs, *, tau: float = 1.0, window: tuple[float, float] = (0.0, 1.0), top: int | None = None):
    return inputs, tau, window, top


def plain(batch, scale, names: Sequence[str] = ()):
    return batch, scale, names


def anything(batch, **settings):
    return batch, settings


def unreadable(batch, size: "Nowhere" = 1):
    return batch, size


class Own:
    """A type of the user's own."""


def of_own_type(batch, thing: Own):
    return batch, thing


def test_values_become_the_declared_types():
    assert checked_settings("k", term, {"tau": 2, "window": [1, 3]}) == {"tau": 2.0, "window": (1.0, 3.0)}
    assert checked_settings("k", plain, {"scale": "any", "names": ["a"]}) == {"scale": "any", "names": ["a"]}


@pytest.mark.parametrize(
    ("function", "settings"), [(anything, {"a": 1}), (unreadable, {"size": "b"}), (of_own_type, {"thing": 3})]
)
def test_what_declares_no_type_that_can_be_checked_is_taken_as_it_is(function, settings):
    assert checked_settings("k", function, settings) == settings


@pytest.mark.parametrize(
    ("function", "settings", "says"),
    [
        (term, {"tua": 1.0}, "k: found tua; term takes tau, window, top."),
        (plain, {}, "k: plain needs scale, which has no default."),
        (len, {"x": 1}, "k: found x; len takes no settings."),
        (term, {"tau": "warm"}, "k.tau: found 'warm', expected a valid number"),
        (term, {"tau": float("nan")}, "k.tau: found nan, expected a finite number"),
        (term, {"top": 2.5}, "k.top: found 2.5, expected a valid integer"),
        (term, {"window": [1]}, "k.window: found [1], expected Field required"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(function, settings, says):
    with pytest.raises(ConfigError) as caught:
        checked_settings("k", function, settings)
    assert str(caught.value).startswith(says)
