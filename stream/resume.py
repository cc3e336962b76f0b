"""Let paused partitions go on (`python -m stream resume`): ask the workers that have them."""

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException

import msgspec

from stream.errors import StreamError
from stream.reset import read_changelog
from stream.settings import ResumeSettings
from stream.transport.reader import bounds
from stream.transport.topics import TIMEOUT_S, chosen_partitions


class _Answer(msgspec.Struct):
    """The offset where the partition goes on; None: it is not paused."""

    offset: int | None


def resume_partitions(settings: ResumeSettings) -> Iterator[tuple[int, int]]:
    """Ask for each partition; yield those that were paused, and the offset where they go on.

    Bad clicks that are in the log by now count for no limit. Raises StreamError where a worker
    does not answer, or the partition that was asked for is not paused.
    """
    partitions = chosen_partitions(settings, settings.partition)
    ends = bounds(settings, settings.clicks_topic, partitions)
    n_resumed, silent = 0, []
    positions, _ = read_changelog(settings, partitions, stable_only=True)
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
                yield partition, offset
    if silent:
        raise StreamError("\n".join(silent))
    if settings.partition is not None and not n_resumed:
        raise StreamError(f"partition {settings.partition} is not paused")


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
