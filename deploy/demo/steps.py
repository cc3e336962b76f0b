"""The steps of the demo, from a broker to a summary, each told with the time since the start."""

import fcntl
import http.client
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.broker import KafkaSource, free_port, resolve_kafka
from deploy.demo.answers import AnswerReader, read_replay
from deploy.demo.heldout import Heldout, read_log, shop_log
from deploy.demo.replay import in_order_of_time
from deploy.demo.report import print_summary
from deploy.demo.summary import Summary, evaluate_offline, summarise
from deploy.processes import Child, ProcessError, running
from stream.model.bundle import load_bundle
from stream.settings import KafkaSettings, TopicsSettings
from stream.transport.topics import check_topics, create_topics
from train.data.clicks import Columns, write_clicks
from train.network.checkpoint import load_checkpoint

READY_TIMEOUT_S = 60.0
QUIET_S = 10.0
"""An answer that has not come for so long after the last one is missing."""


class DemoSettings(BaseSettings):
    """Train on a click log, serve its newest clicks through Kafka, and compare."""

    model_config = SettingsConfigDict(
        env_prefix="DEMO_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="python -m deploy.demo",
        use_attribute_docstrings=True,
    )

    clicks: Path | None = None
    """Click log (.parquet, .csv, .tsv, text also .gz); unset: a made-up shop's."""
    columns: Columns | None = None
    """How the log names its columns; unset: whichever preset fits its header."""
    idle_timeout_s: PositiveInt | None = None
    """Cut the log's sessions at longer gaps, and expire them alike; unset: its session column
    says it all."""
    replayed_clicks: PositiveInt = 30_000
    """Newest clicks that are kept from training and replayed; a fifth of the log at most."""
    clicks_per_second: PositiveFloat = 500.0
    """Pace of the replay."""
    training_s: PositiveFloat = 60.0
    """Time the training may take."""
    out: Path = Path("build/demo")
    """Folder of all that is made; what an earlier demo left there is removed."""


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
        """The demo's place on the broker as flags of our commands; security is inherited."""
        k = self.kafka
        flags = {
            "--bootstrap-servers": k.bootstrap_servers,
            "--app-id": k.app_id,
            "--clicks-topic": k.clicks_topic,
            "--recommendations-topic": k.recommendations_topic,
            "--dead-letter-topic": k.dead_letter_topic,
        }
        return [word for flag in flags.items() for word in flag]


def run_demo(settings: DemoSettings) -> Summary:
    """Run all of it and return what came out; it is in ``summary.json`` too."""
    begin_s = time.monotonic()
    out = settings.out
    with _own_folder(out), resolve_kafka(out / "broker") as bootstrap_servers:
        demo = Demo(settings, _place_on(bootstrap_servers), begin_s)
        demo.tell(f"broker: Apache Kafka on {bootstrap_servers}")
        created = create_topics(TopicsSettings(**demo.kafka.model_dump()))
        check_topics(demo.kafka)
        demo.tell(f"topics: {', '.join(created)}")

        log = shop_log(settings.replayed_clicks) if settings.clicks is None else _foreign(settings)
        write_clicks(log.train, out / "train.parquet")
        write_clicks(in_order_of_time(log.heldout), out / "heldout.parquet")
        demo.tell(
            f"click log: {log.name}, {len(log.train):,} clicks to learn from and the newest "
            f"{len(log.heldout):,} to replay"
        )
        bundle = _train_and_export(demo, log)
        with _worker(demo, bundle) as worker, AnswerReader(demo.kafka) as reader:
            _replay_and_watch(demo, log)
            reader.wait_for(len(log.heldout), QUIET_S)
            worker.check_runs()
        demo.tell("worker: stopped")
        replay = read_replay(demo.kafka, reader.answers)
    if not replay.answers:
        raise ProcessError(f"no click was answered; the worker's log is {out / 'worker.log'}")
    checkpoint = load_checkpoint(out / "checkpoint")
    offline = evaluate_offline(checkpoint, log.heldout)
    oracle = log.oracle_recall(checkpoint.catalogue.item_ids)
    summary = summarise(replay, offline, oracle, log.idle_timeout_s)
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
    demo.tell(f"summary: {out / 'summary.json'}")
    print_summary(summary)
    return summary


def _place_on(bootstrap_servers: str) -> KafkaSettings:
    """The names of the demo's topics: plain on its own broker, unheard-of on a shared one."""
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


def _foreign(settings: DemoSettings) -> Heldout:
    assert settings.clicks is not None
    return read_log(
        settings.clicks,
        settings.columns,
        settings.idle_timeout_s,
        settings.replayed_clicks,
        rejected_path=settings.out / "rejected.csv",
    )


def _train_and_export(demo: Demo, log: Heldout) -> Path:
    """Returns the bundle's folder."""
    out, budget_s = demo.settings.out, demo.settings.training_s
    demo.tell(f"training: {budget_s:g} s (figures and plot in {out / 'checkpoint'})")
    gap = log.idle_timeout_s
    fit = [
        *("train", "fit", "--clicks", str(out / "train.parquet")),
        *("--out", str(out / "checkpoint"), "--time-budget-s", f"{budget_s}"),
        *("--epochs", "1000", "--validation", "0.03"),
        *([] if gap is None else ["--idle-timeout-s", str(gap)]),
    ]
    with running(fit) as child:
        child.wait()
    demo.tell("export: to ONNX, proved against PyTorch")
    export = ["export", "--checkpoint", str(out / "checkpoint"), "--out", str(out / "bundles")]
    with running(export, log=out / "export.log") as child:
        child.wait()
    (folder,) = (out / "bundles").iterdir()
    demo.tell(f"bundle: {load_bundle(folder).manifest.bundle_id}")
    return folder


@contextmanager
def _worker(demo: Demo, bundle: Path) -> Iterator[Child]:
    """A worker that is ready, for as long as the block lasts."""
    port = free_port()
    command = ["stream", "worker", "--bundle", str(bundle), "--web-port", str(port)]
    with running([*command, *demo.kafka_flags], log=demo.settings.out / "worker.log") as worker:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not _is_ready(port):
            worker.check_runs()
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"the worker is not ready after {READY_TIMEOUT_S:.0f} s; its log is "
                    f"{demo.settings.out / 'worker.log'}"
                )
            time.sleep(0.1)
        demo.tell(f"worker: ready, metrics on http://127.0.0.1:{port}/metrics")
        yield worker


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _replay_and_watch(demo: Demo, log: Heldout) -> None:
    """Returns when the last click is acknowledged; the view shows the last answers too."""
    per_second = demo.settings.clicks_per_second
    demo.tell(
        f"replay: {len(log.heldout):,} clicks in order of time at {per_second:g}/s, "
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
        time.sleep(1.0)  # for the eye alone: the view draws the end


@contextmanager
def _own_folder(out: Path) -> Iterator[None]:
    """The folder, empty but for the lock that keeps a second demo out of it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProcessError(f"another demo runs in {out}; choose another --out") from None
        for path in out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        yield
