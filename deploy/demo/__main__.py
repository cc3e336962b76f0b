"""The whole path in one command: ``make demo``, or ``make demo CLICKS=path`` on your own log.

Broker, topics, click log, training, export, worker, a replay of the newest clicks, and what came
out of it beside what the offline evaluator says of the same clicks (deploy/demo/steps.py).
Everything it starts ends with it; what it made stays in build/demo.
"""

import sys

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from deploy.processes import ProcessError, end_on_signals


def main() -> int:
    """Exit code 0, 2 with one sentence on stderr, or 128 + the signal that ended the demo."""
    end_on_signals()
    # Imported here: PyTorch and Polars take seconds, in which Ctrl-C is to be heard already.
    from confluent_kafka import KafkaException

    from deploy.demo.steps import DemoSettings, run_demo
    from deploy.jars import BrokerError
    from stream.errors import StreamError
    from train.data.clicks import ClickLogError

    try:
        run_demo(CliApp.run(DemoSettings))
    except ValidationError as error:
        for wrong in error.errors():
            name = ".".join(map(str, wrong["loc"]))
            print(f"setting {name}: {wrong['msg']}, found {wrong['input']!r}", file=sys.stderr)
        return 2
    except (BrokerError, ClickLogError, ProcessError, SettingsError, StreamError) as error:
        print(error, file=sys.stderr)
        return 2
    except KafkaException as error:
        print(f"Kafka: {error.args[0].str()}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
