"""What every section of a recipe is made of."""

import contextlib
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Frozen; an unknown key is an error, and so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


@contextlib.contextmanager
def as_its_own(where: str = "") -> Iterator[None]:
    """In a validator: what is wrong with a section made of this one's keys is said as this one's, after `where`."""
    try:
        yield
    except ValidationError as error:
        said = [detail["msg"].removeprefix("Value error, ") for detail in error.errors()]
        raise ValueError(where + "; ".join(said)) from None
