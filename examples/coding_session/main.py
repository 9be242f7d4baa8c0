#!/usr/bin/env python3
"""A terminal in which somebody programs, leaves while something runs, and comes back from elsewhere.

A terminal outlives its clients, by five minutes when there is none. What has to run for longer without anybody is a
process of its own, as in `../service`.

    belljar up --detach && eval "$(belljar env)" && pip install tensorlake
    python3 main.py
"""

import sys
import threading
import time

from tensorlake.sandbox import Pty, Sandbox

# Typed into the terminal, as a person or an agent would.
WRITE_PROGRAM = """\
cat > check.py << 'END'
import time
for step in range(1, 6):
    print(f"step {step}", flush=True)
    time.sleep(0.5)
print(f"{step} steps done")
END
"""
AWAY_SECONDS = 3
ANSWER_SECONDS = 60


class Screen:
    """What a terminal has shown to one client."""

    def __init__(self):
        self._text = b""
        self._more = threading.Condition()

    def show(self, data: bytes) -> None:
        with self._more:
            self._text += data
            self._more.notify()

    def wait_for(self, words: str) -> None:
        with self._more:
            if not self._more.wait_for(lambda: words.encode() in self._text, ANSWER_SECONDS):
                raise TimeoutError(f"no {words!r} in {ANSWER_SECONDS} seconds: {self._text.decode(errors='replace')}")


def attach(sandbox_id: str, session_id: str, token: str) -> tuple[Pty, Screen]:
    """Opens a session that is there, as a client that knows these three can from any machine."""
    screen = Screen()
    terminal = Sandbox.connect(sandbox_id).connect_pty(session_id, token, on_data=screen.show)
    return terminal, screen


def main() -> None:
    with Sandbox.create() as sandbox:
        screen = Screen()
        terminal = sandbox.create_pty("/bin/bash", working_dir="/workspace", rows=24, cols=80, on_data=screen.show)
        terminal.send_input(WRITE_PROGRAM)
        terminal.send_input("python3 check.py\n")
        screen.wait_for("step 1")
        print("the check runs", flush=True)

        terminal.disconnect()
        time.sleep(AWAY_SECONDS)
        print("detached, and gone for a while", flush=True)

        # What was shown is shown again, also what nobody was there to see.
        terminal, screen = attach(sandbox.sandbox_id, terminal.session_id, terminal.token)
        screen.wait_for("step 1")
        screen.wait_for("5 steps done")
        print("back: the check went on", flush=True)

        terminal.resize(cols=120, rows=40)
        terminal.send_input("stty size; wc -l check.py\n")
        screen.wait_for("40 120")
        screen.wait_for("5 check.py")
        terminal.send_input("exit 3\n")
        print("the shell ended with exit code", terminal.wait(ANSWER_SECONDS))


if __name__ == "__main__":
    sys.exit(main())
