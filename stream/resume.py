"""Let paused partitions go on (`python -m stream resume`): ask the workers that have them."""

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator
from http.client import HTTPException

import msgspec

from stream.errors import StreamError
from stream.position import Position
from stream.settings import ResumeSettings
from stream.transport.reader import bounds
from stream.transport.restore import Changelog
from stream.transport.topics import TIMEOUT_S, chosen_partitions


class _Answer(msgspec.Struct):
    """The offset where the partition goes on; None: it is not paused."""

    offset: int | None


def resume_partitions(settings: ResumeSettings) -> Iterator[str]:
    """Ask for each partition; yield a line for each that was paused, or one that none was.

    Bad clicks that are in the log by now count for no limit. Raises StreamError where a worker
    does not answer, or the partition that was asked for is not paused.
    """
    how = "skips" if settings.pass_over else "continues at"
    topic = settings.chosen.input
    partitions = chosen_partitions(settings, topic, settings.partition)
    ends = bounds(settings, topic, partitions)
    positions, silent = _positions(settings, partitions)
    n_resumed = 0
    for partition, position in positions.items():
        asked = {"excused_until": ends[partition][2], "pass_over": str(settings.pass_over).lower()}
        page = f"/partitions/{partition}/resume?{urllib.parse.urlencode(asked)}"
        try:
            offset = _ask(f"http://{position.address}{page}")
        except (OSError, HTTPException, msgspec.MsgspecError) as error:
            silent.append(
                f"no worker answers for partition {partition} at {position.address!r}, the address "
                f"it recorded from NEXTCLICK_WEB_HOST and NEXTCLICK_WEB_PORT ({error}); run "
                f"`curl -X POST 'http://HOST:PORT{page}'` from a host that can reach it"
            )
        else:
            if offset is not None:
                n_resumed += 1
                yield f"partition {partition}: {how} offset {offset}"
    if silent:
        raise StreamError("\n".join(silent))
    if n_resumed:
        return
    behind = [
        f"partition {p} (offset {position.next_offset} of {ends[p][2]})"
        for p, position in positions.items()
        if position.next_offset < ends[p][2]
    ]
    hint = (
        f"; not at its log's end: {', '.join(behind)}; where that offset stays the same, see "
        "ClicksNotProcessed in docs/operations.md"
    )
    where = hint if behind else ""
    if settings.partition is not None:
        raise StreamError(f"partition {settings.partition} is not paused{where}")
    yield f"no partition is paused{where}"


class _NoStates:
    """The table of somebody who asks for the positions alone."""

    def restore(self, key: bytes, value: bytes | None) -> None: ...
    def finish_restore(self) -> None: ...


def _positions(
    settings: ResumeSettings, partitions: Collection[int]
) -> tuple[dict[int, Position], list[str]]:
    """The positions, and a sentence for each that cannot be read."""
    tables = dict.fromkeys(partitions, _NoStates())
    changelog = Changelog(settings, settings.chosen, tables)
    changelog.read_on(stable_only=True)
    return changelog.positions, [changelog.faults()[p] for p in partitions if changelog.bad_keys(p)]


def _ask(url: str) -> int | None:
    request = urllib.request.Request(url, method="POST")  # noqa: S310  # the scheme is ours
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            body = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 404:
                raise
            body = error.read()
    return msgspec.json.decode(body, type=_Answer).offset
