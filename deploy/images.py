"""Container images where none can be pulled: a Debian base, Kafka, and our own `stream`.

`python -m deploy.images` makes all three. Elsewhere `python:3.11-slim` and `apache/kafka` serve,
and only `docker build` is needed. The base is made by debootstrap (root, Debian or Ubuntu).
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
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from deploy.jars import KAFKA_VERSION, BrokerError, kafka_runtime

BASE_IMAGE = "nextclick/base:bookworm"
KAFKA_IMAGE = f"nextclick/kafka:{KAFKA_VERSION}"
STREAM_IMAGE = "nextclick/stream:latest"
ROOT = Path(__file__).parent.parent
CA_CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")

log = structlog.get_logger()


class ImagesSettings(BaseSettings):
    """Make the container images the tests need, without pulling any."""

    model_config = SettingsConfigDict(
        env_prefix="IMAGES_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_prog_name="python -m deploy.images",
        use_attribute_docstrings=True,
    )

    only: Literal["base", "kafka", "stream"] | None = None
    """Make this one alone; the others are taken to be there."""
    suite: str = "bookworm"
    """Debian release of the base; it has Python 3.11."""
    mirror: str | None = None
    """Where debootstrap fetches the packages; unset: its own default."""
    cache: Path | None = Field(default=None, validation_alias="BROKER_CACHE")
    """Folder for Kafka's jars; the default is the user's cache folder."""


class ImagesError(Exception):
    """An image cannot be made; the message is one sentence for the operator."""


def make_base(suite: str, mirror: str | None) -> None:
    """A Debian image with Python 3 and venv, which trusts the certificates that this host trusts.

    Takes about 50 s. A package index behind a private certificate can so be reached while
    building; images that leave this host should be built on a published base instead.
    """
    if shutil.which("debootstrap") is None:
        raise ImagesError("debootstrap is missing: apt-get install debootstrap")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        packages = "--include=python3,python3-venv,ca-certificates"
        run(
            "debootstrap",
            "--variant=minbase",
            packages,
            suite,
            str(root),
            *([mirror] if mirror else []),
        )
        shutil.rmtree(root / "var/cache/apt/archives")
        shutil.rmtree(root / "var/lib/apt/lists")
        host = Path("/") / CA_CERTIFICATES
        if host.exists():
            shutil.copyfile(host, root / CA_CERTIFICATES)
        with subprocess.Popen(
            ["/bin/tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE
        ) as archive:
            run("docker", "import", "-", BASE_IMAGE, stdin=archive.stdout)
        if archive.returncode:
            raise ImagesError(f"tar of {root} ended with code {archive.returncode}")


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
        (folder / "Dockerfile").write_text(
            f"FROM {BASE_IMAGE}\n"
            "RUN useradd --uid 1000 kafka && install -d -o kafka /var/lib/kafka/data\n"
            "COPY java /opt/java\nCOPY jars /opt/kafka/jars\n"
            "COPY --chown=kafka kafka-entrypoint.sh /opt/kafka/\n"
            "ENV PATH=/opt/java/bin:$PATH\nUSER kafka\nEXPOSE 9092\n"
            'ENTRYPOINT ["/opt/kafka/kafka-entrypoint.sh"]\n'
        )
        run("docker", "build", "--tag", KAFKA_IMAGE, str(folder))


def make_stream(base: str = BASE_IMAGE) -> None:
    """The worker's image, from deploy/Dockerfile on this base.

    The build uses the host's network: a package index that only the host reaches still serves.
    """
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
        raise ImagesError(f"`{' '.join(command[:3])}` ended with code {done.returncode}")


def main() -> int:
    try:
        settings = CliApp.run(ImagesSettings)
    except ValidationError as error:
        for wrong in error.errors():
            setting = ".".join(map(str, wrong["loc"]))
            print(f"setting {setting}: {wrong['msg']}, found {wrong['input']!r}", file=sys.stderr)
        return 2
    makers: dict[str, Callable[[], None]] = {
        "base": lambda: make_base(settings.suite, settings.mirror),
        "kafka": lambda: make_kafka(settings.cache),
        "stream": make_stream,
    }
    try:
        for name, make in makers.items():
            if settings.only in (None, name):
                make()
                log.info("image_made", image=name)
    except (ImagesError, BrokerError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
