"""The session table's store for Faust, which assigns partitions by it and keeps nothing in it."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from faust.stores import STORES, memory

STORE_URL = "nextclick-sessions://"
STORES.aliases["nextclick-sessions"] = "stream.transport.store:NoStore"


class NoStore(memory.Store[bytes, bytes]):
    """Faust's plug-in. The table itself is the processor's, and restore.py fills it."""

    logger = logging.getLogger("faust.store")

    def apply_changelog_batch(
        self,
        batch: Iterable[Any],
        to_key: Callable[[Any], Any],
        to_value: Callable[[Any], Any],
    ) -> None:
        """Never called: every changelog partition is restored by restore.py."""
        raise AssertionError("Faust read the changelog by itself; see patches.py")
