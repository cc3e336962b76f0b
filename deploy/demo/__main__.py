"""The whole path in one command: ``make demo``, or ``make demo CLICKS=path`` on your own log.

Broker, topics, click log, training, export, worker and item processor, a replay of the newest
clicks, and a comparison of the answers with the offline evaluation of the same clicks
(deploy/demo/steps.py). Everything it starts ends with it; what it made stays in build/demo.
"""

import sys

from deploy.processes import end_on_signals
from train.command import run_command


def main() -> int:
    """Exit code 0, 2 with one sentence on stderr, or 128 + the signal that ended the demo."""
    end_on_signals()
    # Imported here: PyTorch and Polars take seconds, in which Ctrl-C must already work.
    from deploy.demo.steps import DemoSettings, run_demo
    from stream.errors import StreamError

    return run_command(DemoSettings, run_demo, errors=(StreamError,))


if __name__ == "__main__":
    sys.exit(main())
