#!/usr/bin/env python3
"""A stateful interpreter, as behind a notebook: what one cell defines, the next ones have, also after a sleep.

    belljar up --detach && eval "$(belljar env)" && pip install tensorlake
    python3 main.py
"""

import json
import signal
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path

from tensorlake.sandbox import Sandbox

PORT = 8888  # that of kernel.py
START_SECONDS = 60
# A cell that takes longer is interrupted; what the others defined stays.
CELL_SECONDS = 5


class Interpreter:
    """Cells are run by `kernel.py` in the sandbox, to which a tunnel leads."""

    def __init__(self, sandbox: Sandbox):
        self._sandbox = sandbox
        sandbox.upload_file(Path(__file__).with_name("kernel.py"), "/tmp/kernel.py")
        self._kernel = sandbox.start_process("python3", ["/tmp/kernel.py"]).pid
        deadline = time.monotonic() + START_SECONDS
        while "ready" not in sandbox.get_stdout(self._kernel).lines:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no kernel: {sandbox.get_stderr(self._kernel).lines}")
            time.sleep(0.2)
        # Each cell is a connection of its own, and one that comes while the sandbox sleeps wakes it.
        self._tunnel = sandbox.create_tunnel(PORT, local_port=0, connect_timeout=60)

    def run(self, code: str) -> dict:
        interrupt = threading.Timer(CELL_SECONDS, self._sandbox.send_signal, [self._kernel, signal.SIGINT])
        interrupt.start()
        try:
            url = f"http://{self._tunnel.local_host}:{self._tunnel.local_port}/"
            with urllib.request.urlopen(url, data=code.encode(), timeout=CELL_SECONDS + 60) as response:
                return json.load(response)
        finally:
            interrupt.cancel()

    def close(self) -> None:
        self._tunnel.close()


def show(interpreter: Interpreter, code: str) -> None:
    print(">>>", "\n... ".join(code.splitlines()))
    answer = interpreter.run(code)
    for text in (answer["output"], answer["result"], answer["traceback"]):
        if text:
            print(text.rstrip("\n"), flush=True)


BEFORE = [
    "import math\nradius = 2",
    "print('the area of a circle')\nround(math.pi * radius**2, 2)",
    "def scale(factor):\n    return radius * factor / (factor - 1)",
    "scale(1)",
]
AFTER = [
    "scale(3)",
    "while True: radius += 1",
    "radius > 2",
]


def main() -> None:
    # Only a sandbox that has a name can sleep: the others end when they are idle.
    with Sandbox.create(name=f"interpreter-{uuid.uuid4().hex[:8]}") as sandbox:
        interpreter = Interpreter(sandbox)
        try:
            for code in BEFORE:
                show(interpreter, code)
            sandbox.suspend()
            print(f"# {sandbox.status.value}; the next cell wakes it", flush=True)
            for code in AFTER:
                show(interpreter, code)
        finally:
            interpreter.close()


if __name__ == "__main__":
    sys.exit(main())
