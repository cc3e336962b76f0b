"""Let paused partitions go on (`python -m stream resume`): ask the workers that have them."""

import json
import urllib.error
import urllib.parse
import urllib.request

from stream.errors import StreamError
from stream.reset import read_changelog
from stream.settings import ResumeSettings
from stream.transport.reader import bounds
from stream.transport.topics import TIMEOUT_S, chosen_partitions


def resume_partitions(settings: ResumeSettings) -> dict[int, int]:
    """Ask for each partition; returns, by those that were paused, the offset where they go on.

    Bad clicks that are in the log by now count for no limit. Raises StreamError where a worker
    does not answer, or the partition that was asked for is not paused.
    """
    partitions = chosen_partitions(settings, settings.partition)
    ends = bounds(settings, settings.clicks_topic, partitions)
    resumed, silent = {}, []
    positions, _ = read_changelog(settings, partitions, stable_only=True)
    for partition, position in positions.items():
        asked = {"excused_until": ends[partition][2], "pass_over": str(settings.pass_over).lower()}
        page = f"/partitions/{partition}/resume?{urllib.parse.urlencode(asked)}"
        url = f"http://{position.address}{page}"
        request = urllib.request.Request(url, method="POST")  # the scheme is ours
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                resumed[partition] = json.load(answer)["offset"]
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
        except (OSError, ValueError) as error:
            silent.append(
                f"the worker of partition {partition} does not answer at {position.address!r}, "
                f"its NEXTCLICK_WEB_HOST and _PORT ({error}); where it can be reached, "
                f"`curl -X POST 'http://HOST:PORT{page}'` does the same"
            )
    if silent:
        raise StreamError("\n".join(silent))
    if settings.partition is not None and not resumed:
        raise StreamError(f"partition {settings.partition} is not paused")
    return resumed
