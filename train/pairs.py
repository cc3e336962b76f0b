"""Flags that take several named values, as in ``--columns session=sid,item=sku``."""

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError
from pydantic_settings import NoDecode

T = TypeVar("T", bound=BaseModel)


def parse_pairs(given: Any) -> Any:
    """Pairs from the command line; a word without a value has an empty one."""
    if not isinstance(given, str):
        return given
    words = [word.strip().partition("=") for word in given.split(",") if word.strip()]
    return {name.strip(): value.strip() for name, _, value in words}


Pairs: TypeAlias = Annotated[dict[str, str], NoDecode, BeforeValidator(parse_pairs)]


def pairs_of(kind: type[BaseModel]) -> AfterValidator:
    """Refuses pairs that `from_pairs` cannot make a `kind` of."""
    return AfterValidator(lambda pairs: from_pairs(kind, pairs) and pairs)


def from_pairs(kind: type[T], given: dict[str, Any]) -> T:
    """The pairs as a `kind`, its names with dashes or underscores. Raises ValueError with one
    sentence on the first wrong pair."""
    try:
        return kind.model_validate({name.replace("-", "_"): v for name, v in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"{name} is unknown, expected {', '.join(kind.model_fields)}"
        elif name:
            message = f"{name}={first['input']}: {message}"
        raise ValueError(message) from error
