"""Flags that take several named values, as in ``--columns session=sid,item=sku``."""

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_settings import NoDecode

T = TypeVar("T", bound=BaseModel)


def _parse(given: Any) -> Any:
    """Pairs from the command line; a word without a value has an empty one."""
    if not isinstance(given, str):
        return given
    words = [word.strip().partition("=") for word in given.split(",") if word.strip()]
    return {name.strip(): value.strip() for name, _, value in words}


Pairs: TypeAlias = Annotated[dict[str, str], NoDecode, BeforeValidator(_parse)]


def from_pairs(kind: type[T], given: dict[str, Any]) -> T:
    """The pairs as a `kind`, its names with dashes or underscores.

    Raises ValueError with one sentence on the first wrong pair.
    """
    try:
        return kind.model_validate({name.replace("-", "_"): v for name, v in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            expected = ", ".join(kind.model_fields)
            raise ValueError(f"{name} is unknown, expected {expected}") from error
        message = first["msg"].removeprefix("Value error, ")
        if not name:
            raise ValueError(message) from error
        raise ValueError(f"{name}={first['input']}: {message}") from error
