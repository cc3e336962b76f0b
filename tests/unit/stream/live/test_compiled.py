"""Machine code with and without a folder for it, and who has to load what makes it."""

import subprocess
import sys

from stream.live.compiled import compiled


def test_a_function_is_compiled_where_no_folder_can_keep_it() -> None:
    of_no_file: dict[str, object] = {}
    exec("def twice(n): return 2 * n", of_no_file)
    twice = of_no_file["twice"]
    assert callable(twice)
    made = compiled(twice)
    assert (made(3), made(1.5)) == (6, 3.0)


def test_a_worker_of_a_network_alone_loads_no_compiler() -> None:
    code = "import sys, stream.service; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
