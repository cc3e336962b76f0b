"""The steps of the demo, from a broker to a summary, each printed with the time since the start."""

import contextlib
import http
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.request import urlopen

from confluent_kafka import KafkaException
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings

from deploy.broker import KafkaSource, free_port, resolve_kafka
from deploy.command import DeployError, options
from deploy.demo.answers import AnswerReader, read_replay
from deploy.demo.heldout import Heldout, read_log, shop_log
from deploy.demo.replay import in_order_of_time
from deploy.demo.summary import evaluate_offline, print_summary, summarise
from deploy.processes import Child, running
from stream.model.bundle import load_bundle
from stream.settings import KafkaSettings, TopicsSettings
from stream.transport.topics import check_all_topics, create_topics
from train.data.clicks import write_clicks
from train.data.health import describe
from train.fit.training_log import ColumnNames, Reading, Weights
from train.folders import locked
from train.network.checkpoint import load_checkpoint

READY_TIMEOUT_S = 60.0
QUIET_S = 10.0
"""Answers that have not come this long after the last one are missing."""


class DemoSettings(BaseSettings):
    """Train on a click log, serve its newest clicks through Kafka, and compare."""

    model_config = options("deploy.demo")

    clicks: str | Path | None = None
    """Click log, as for python -m train fit; unset: one of a made-up shop."""
    columns: ColumnNames = Field(default={})
    """Names of the log's columns, as for fit; unset: found out."""
    idle_timeout_s: PositiveInt | None = None
    """Longest gap within a session, in the log and in service; unset: sessions are those of the
    log's session column and never expire."""
    event_types: Weights = Field(default={})
    """Types of event that advance a session, as for fit."""
    replayed_clicks: PositiveInt = 30_000
    """Newest clicks, held back from training and replayed; at most a fifth of the log."""
    clicks_per_second: PositiveFloat = 500.0
    """Pace of the replay."""
    training_s: PositiveFloat = 180.0
    """Most seconds of training; the made-up shop's is over after some epochs."""
    out: Path = Path("build/demo")
    """Folder of everything that is made; what an earlier demo left there is removed."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo's folder, its place on the broker, and its stopwatch."""

    settings: DemoSettings
    kafka: KafkaSettings
    begin_s: float

    def tell(self, text: str) -> None:
        """Print a step with the time since the start."""
        print(f"{time.monotonic() - self.begin_s:6.1f} s  {text}", flush=True)

    @property
    def kafka_flags(self) -> list[str]:
        """Flags of our commands; security settings reach them through the environment."""
        topics = ("clicks_topic", "dead_letter_topic", "recommendations_topic")
        names = ("bootstrap_servers", "app_id", *topics)
        flags = ((f"--{name.replace('_', '-')}", getattr(self.kafka, name)) for name in names)
        return [word for flag in flags for word in flag]


def run_demo(settings: DemoSettings) -> None:
    """Run all steps, print the summary and leave it in ``summary.json``. Raises DeployError."""
    out = settings.out
    try:
        with locked(out, f"another demo is running in {out}; choose another --out"):
            for path in out.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            _run(settings)
    except KafkaException as error:
        raise DeployError(f"Kafka: {error.args[0].str()}") from error


def _run(settings: DemoSettings) -> None:
    begin_s = time.monotonic()
    out = settings.out
    with resolve_kafka(out / "broker") as bootstrap_servers:
        demo = Demo(settings, _place_on(bootstrap_servers), begin_s)
        demo.tell(f"broker: Apache Kafka on {bootstrap_servers}")
        created = create_topics(TopicsSettings(**demo.kafka.model_dump()))
        check_all_topics(demo.kafka)
        demo.tell(f"topics: {', '.join(created)}")

        if settings.clicks is None:
            log = shop_log(settings.replayed_clicks)
        else:
            reading = Reading(**settings.model_dump(include=set(Reading.model_fields)))
            log = read_log(reading, settings.replayed_clicks, out / "rejected.csv")
        write_clicks(log.train, out / "train.parquet")
        write_clicks(in_order_of_time(log.heldout), out / "heldout.parquet")
        demo.tell(
            f"click log: {log.name}, {len(log.train):,} clicks to learn from and the newest "
            f"{len(log.heldout):,} to replay"
        )
        if log.health is not None:
            print(describe(log.health, log.name), flush=True)
        bundle = _train_and_export(demo, log)
        with services_of(demo, bundle) as services, AnswerReader(demo.kafka) as reader:
            _replay_and_watch(demo, log)
            reader.wait_for(len(log.heldout), QUIET_S)
            for service in services.values():
                service.check_runs()
        demo.tell(f"{' and '.join(services)}: stopped")
        replay = read_replay(demo.kafka, reader.answers)
    if not replay.answers:
        raise DeployError(f"no click was answered; the worker's log is {out / 'worker.log'}")
    models = {"offline": load_checkpoint(out / "checkpoint")}
    if log.context:
        models["without_context"] = load_checkpoint(out / "without-context")
    offline = evaluate_offline(models, log.train, log.heldout)
    if oracle := log.oracle(models["offline"].catalogue.item_ids):
        offline["oracle"] = oracle
    summary = summarise(replay, offline, log.idle_timeout_s)
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
    demo.tell(f"summary: {out / 'summary.json'}")
    print_summary(summary)


def _place_on(bootstrap_servers: str) -> KafkaSettings:
    """The names of the demo's topics: the usual ones on its own broker, unique on a shared one."""
    if KafkaSource().bootstrap_servers is None:
        return KafkaSettings(bootstrap_servers=bootstrap_servers)
    run = f"demo-{uuid.uuid4().hex[:8]}"
    return KafkaSettings(
        bootstrap_servers=bootstrap_servers,
        app_id=run,
        clicks_topic=f"{run}-clicks",
        recommendations_topic=f"{run}-recommendations",
        dead_letter_topic=f"{run}-clicks-dead-letter",
    )


def _train_and_export(demo: Demo, log: Heldout) -> Path:
    """Returns the bundle's folder."""
    out, budget_s = demo.settings.out, demo.settings.training_s
    fit = [
        *("train", "fit", "--clicks", str(out / "train.parquet"), "--time-budget-s", f"{budget_s}"),
        *("--validation", "0.03", *log.training),
        *([] if log.idle_timeout_s is None else ["--idle-timeout-s", str(log.idle_timeout_s)]),
    ]
    with_context = [*fit, *log.context, "--out", str(out / "checkpoint")]
    also = "; beside it the same network without context" if log.context else ""
    demo.tell(f"training: {budget_s:g} s at most{also} (figures and plot in {out / 'checkpoint'})")
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(running(with_context))]
        if log.context:
            without = [*fit, "--out", str(out / "without-context")]
            children.append(stack.enter_context(running(without, out / "without-context.log")))
        for child in children:
            child.wait()
    demo.tell("export: to ONNX, checked against PyTorch")
    export = ["export", "--checkpoint", str(out / "checkpoint"), "--out", str(out / "bundles")]
    with running(export, log=out / "export.log") as child:
        child.wait()
    (folder,) = (out / "bundles").iterdir()
    demo.tell(f"bundle: {load_bundle(folder).manifest.bundle_id}")
    return folder


@contextlib.contextmanager
def services_of(demo: Demo, bundle: Path) -> Iterator[dict[str, Child]]:
    """A worker, and the item processor where lists learn from the stream: ready, for the block."""
    commands = {"worker": "worker"}
    if load_bundle(bundle).manifest.live is not None:
        commands["item processor"] = "count"
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(_service(demo, bundle, name, command))
            for name, command in commands.items()
        }


@contextlib.contextmanager
def _service(demo: Demo, bundle: Path, name: str, command: str) -> Iterator[Child]:
    """One process that is ready, for as long as the block lasts."""
    port = free_port()
    words = ["stream", command, "--bundle", str(bundle), "--web-port", str(port)]
    log = demo.settings.out / f"{command}.log"
    with running([*words, *demo.kafka_flags], log) as service:
        service.wait_until(lambda: _is_ready(port), READY_TIMEOUT_S, f"the {name} (log: {log})")
        demo.tell(f"{name}: ready, metrics on http://127.0.0.1:{port}/metrics")
        yield service


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as page:
        return bool(page.status == http.HTTPStatus.OK)
    return False


def _replay_and_watch(demo: Demo, log: Heldout) -> None:
    """Returns once the last click is acknowledged and the view has shown the last answers."""
    per_second = demo.settings.clicks_per_second
    demo.tell(
        f"replay: {len(log.heldout):,} clicks in chronological order at {per_second:g}/s, "
        f"{len(log.heldout) / per_second:.0f} s"
    )
    watch = ["stream", "watch", "--from-beginning", *demo.kafka_flags]
    if log.idle_timeout_s is not None:
        watch += ["--idle-timeout-s", str(log.idle_timeout_s)]
    replay = [
        *("deploy.demo.replay", "--clicks", str(demo.settings.out / "heldout.parquet")),
        *("--bootstrap-servers", demo.kafka.bootstrap_servers, "--topic", demo.kafka.clicks_topic),
        *("--clicks-per-second", f"{per_second}"),
    ]
    with running(watch), running(replay) as producer:
        producer.wait()
        time.sleep(1.0)  # until the view has drawn the end
