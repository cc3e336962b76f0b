"""What of Faust is replaced is there; how it works together is the contract's, on a real broker."""

from inspect import signature

import pytest
from faust.sensors.monitor import Monitor
from faust.transport.drivers import by_url

from stream.settings import WorkerSettings
from stream.transport.faust_app import BatchTransport, LeanMonitor, build_app


@pytest.mark.parametrize(
    "name", [name for name in vars(LeanMonitor) if name.startswith(("on_", "track_"))]
)
def test_the_lean_monitor_leaves_out_methods_that_fausts_monitor_has(name: str) -> None:
    assert list(signature(getattr(LeanMonitor, name)).parameters) == list(
        signature(getattr(Monitor, name)).parameters
    )


def test_faust_finds_our_transport_by_the_brokers_url() -> None:
    settings = WorkerSettings.model_validate({"bundle": "b", "bootstrap_servers": "k-1:9,k-2:9"})
    app = build_app(settings, "a-group")
    assert by_url(app.conf.broker[0]) is BatchTransport
    assert app.conf.id == "a-group"
    assert not app.conf.topic_allow_declare, "a worker's principal needs no CREATE"
