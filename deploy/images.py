"""Container images for hosts that cannot pull any: a Debian base, Kafka, and our own `stream`.

`python -m deploy.images` makes all three. Elsewhere use `python:3.11-slim` and `apache/kafka`, and
`docker build`. The base is made by debootstrap (as root, on Debian or Ubuntu).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

import structlog
from pydantic import Field
from pydantic_settings import BaseSettings

from deploy.broker import KAFKA_VERSION, kafka_runtime
from deploy.command import DeployError, options
from train.command import run_command

BASE_IMAGE = "nextclick/base:bookworm"
KAFKA_IMAGE = f"nextclick/kafka:{KAFKA_VERSION}"
STREAM_IMAGE = "nextclick/stream:latest"
ROOT = Path(__file__).parent.parent
CA_CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")

log = structlog.get_logger()


class ImagesSettings(BaseSettings):
    """Make the container images that the tests need, without pulling any."""

    model_config = options("deploy.images")

    only: Literal["base", "kafka", "stream"] | None = None
    """Make only this one; the others must exist already."""
    suite: str = "bookworm"
    """Debian release of the base, one with Python 3.11."""
    mirror: str | None = None
    """Where debootstrap fetches packages; unset: its own default."""
    cache: Path | None = Field(default=None, validation_alias="NEXTCLICK_BROKER_CACHE")
    """Folder for Kafka's jars; the default is the user's cache folder."""


def make_base(suite: str, mirror: str | None) -> None:
    """A Debian image with Python 3 and venv, which trusts the certificates that this host trusts.

    Takes about 50 s. Builds on it can reach a package index behind a private certificate; build
    images that leave this host on a published base instead.
    """
    if shutil.which("debootstrap") is None:
        raise DeployError("debootstrap is not installed: apt-get install debootstrap")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        packages = "--include=python3,python3-venv,ca-certificates"
        source = [suite, str(root), *([mirror] if mirror else [])]
        run("debootstrap", "--variant=minbase", packages, *source)
        shutil.rmtree(root / "var/cache/apt/archives")
        shutil.rmtree(root / "var/lib/apt/lists")
        host = Path("/") / CA_CERTIFICATES
        if host.exists():
            shutil.copyfile(host, root / CA_CERTIFICATES)
        tar = ["/bin/tar", "-C", str(root), "-c", "."]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as archive:
            run("docker", "import", "-", BASE_IMAGE, stdin=archive.stdout)
        if archive.returncode:
            raise DeployError(f"tar of {root} exited with code {archive.returncode}")


def make_kafka(cache: Path | None) -> None:
    """A Kafka image out of the embedded broker's jars and Java, set up as the official one is."""
    java, class_path = kafka_runtime(cache)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(java.parent.parent, folder / "java", symlinks=True)
        (folder / "jars").mkdir()
        for jar in class_path.split(os.pathsep):
            shutil.copy(jar, folder / "jars")
        shutil.copy(ROOT / "deploy/kafka-entrypoint.sh", folder)
        dockerfile = ("--file", str(ROOT / "deploy/Dockerfile.kafka"))
        base = ("--build-arg", f"BASE={BASE_IMAGE}")
        run("docker", "build", *dockerfile, *base, "--tag", KAFKA_IMAGE, str(folder))


def make_stream(base: str = BASE_IMAGE) -> None:
    """The worker's image on this base; the host's network reaches a private package index."""
    run(
        *("docker", "build", "--network", "host", "--target", "stream"),
        *("--build-arg", f"BASE={base}"),
        *("--build-arg", f"PIP_CERT=/{CA_CERTIFICATES}"),
        *("--file", str(ROOT / "deploy/Dockerfile"), "--tag", STREAM_IMAGE, str(ROOT)),
    )


def run(*command: str, stdin: IO[bytes] | None = None) -> None:
    """Run a command to its end; its output is shown only when it fails."""
    done = subprocess.run(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise DeployError(f"`{' '.join(command[:3])}` exited with code {done.returncode}")


def make_images(settings: ImagesSettings) -> None:
    """Make the images one after the other, or the one that is named."""
    makers: dict[str, Callable[[], None]] = {
        "base": lambda: make_base(settings.suite, settings.mirror),
        "kafka": lambda: make_kafka(settings.cache),
        "stream": make_stream,
    }
    for name, make in makers.items():
        if settings.only in (None, name):
            make()
            log.info("image_made", image=name)


if __name__ == "__main__":
    sys.exit(run_command(ImagesSettings, make_images))
