"""Folders that one process at a time writes to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from train.command import TrainError

log = structlog.get_logger()


def make_folder(folder: Path) -> None:
    """Create the folder and its parents, before hours of work and not after. Raises TrainError if
    that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"{folder} cannot be created: {error.strerror}") from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes the file in one step at the end of the block."""
    partial = file.with_name(file.name + ".partial")
    yield partial
    partial.replace(file)


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[int]:
    """Create the folder and keep other processes out of it; yields the lock's file descriptor.

    Raises TrainError with the sentence `busy` if another process holds it. The lock is on the
    folder itself, so it leaves no file behind and ends with the process, however that ends.
    """
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainError(busy) from None
        except OSError as error:  # some network file systems cannot lock a folder
            log.warning("folder_not_locked", folder=str(folder), error=error.strerror)
        yield descriptor
    finally:
        os.close(descriptor)
