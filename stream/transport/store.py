"""The session table's store for Faust: a ``Sessions`` that restore.py fills."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from faust.stores import STORES, memory

from stream.session import Sessions

STORE_URL = "nextclick-sessions://"
STORES.aliases["nextclick-sessions"] = "stream.transport.store:SessionStore"


class SessionStore(memory.Store[bytes, bytes]):
    """Faust's plug-in: the table's data is a ``Sessions``; Faust itself writes nothing to it."""

    logger = logging.getLogger("faust.store")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sessions = Sessions()

    def apply_changelog_batch(
        self,
        batch: Iterable[Any],
        to_key: Callable[[Any], Any],
        to_value: Callable[[Any], Any],
    ) -> None:
        """Never called: every changelog partition is restored by restore.py."""
        raise AssertionError("Faust read the changelog of its own; see patches.py")
