"""The keys of `model` that only a model that sees images has."""

from pydantic import PositiveInt, model_validator

from rlhf.config.section import Section


class FreezeConfig(Section):
    """Parts of a model that sees images which are not trained. They have no gradient and no optimizer state."""

    vision: bool = False
    """The tower that reads pixels."""
    projector: bool = False
    """What brings its output to the size of the language model."""
    text: bool = False
    """The language model, embeddings and head included."""

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the parts that are not trained."""
        return frozenset(name for name, is_frozen in dict(self).items() if is_frozen)

    @model_validator(mode="after")
    def _trains_something(self) -> "FreezeConfig":
        if len(self.frozen) == len(type(self).model_fields):
            raise ValueError(
                "model.freeze: all parts are frozen, so nothing would be trained. Free one of them."
            )
        return self


class ImageProcessorConfig(Section):
    """How the images of a model of `model.config` are resized; a folder has its own preprocessor_config.json."""

    min_pixels: PositiveInt = 56 * 56
    """A smaller image is enlarged."""
    max_pixels: PositiveInt = 28 * 28 * 1280
    """A larger image is reduced: what bounds its tokens."""

    @model_validator(mode="after")
    def _is_range(self) -> "ImageProcessorConfig":
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.image_processor.min_pixels is {self.min_pixels} and max_pixels is {self.max_pixels}: the first "
                "must not be above the second."
            )
        return self
