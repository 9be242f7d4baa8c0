#!/usr/bin/env python3
"""An agent harness: the tool calls of a language model are carried out in a sandbox.

The model is a recording: `tool_calls.json` has the calls that it made and, of each, what the result has to contain. A
live harness differs in one place: it gets the next call from the model, and sends the result back to it.

    belljar up --detach && eval "$(belljar env)" && pip install tensorlake
    python3 main.py [tool_calls.json]
"""

import json
import sys
from pathlib import Path

from tensorlake.sandbox import Sandbox, SandboxException

WORKSPACE = "/workspace"
# Code that a model wrote may never end. What takes longer is killed in the sandbox, with all that it started.
RUN_SECONDS = 10
# A model pays for what it reads, and a program may write without end.
RESULT_CHARACTERS = 4000


def run_code(sandbox: Sandbox, code: str) -> str:
    ran = sandbox.run("python3", ["-c", code], working_dir=WORKSPACE, timeout=RUN_SECONDS)
    said = ran.stdout + ran.stderr
    if ran.timed_out:
        return f"{said}\nkilled after {RUN_SECONDS} seconds"
    return said if ran.exit_code == 0 else f"exit code {ran.exit_code}\n{said}"


def write_file(sandbox: Sandbox, path: str, content: str) -> str:
    sandbox.write_file(f"{WORKSPACE}/{path}", content.encode())
    return f"{len(content.encode())} bytes written"


def read_file(sandbox: Sandbox, path: str) -> str:
    return sandbox.read_file(f"{WORKSPACE}/{path}").value.decode(errors="replace")


TOOLS = {"run_code": run_code, "write_file": write_file, "read_file": read_file}


def answer(sandbox: Sandbox, call: dict) -> str:
    """Carries a call out. What the model did wrong is an answer to it, not the end of the harness."""
    tool = TOOLS.get(call["name"])
    if tool is None:
        return f"error: there is no tool {call['name']!r}; there are {', '.join(TOOLS)}"
    try:
        result = tool(sandbox, **call["arguments"])
    except (SandboxException, TypeError) as error:
        return f"error: {error}"
    return result if len(result) <= RESULT_CHARACTERS else f"{result[:RESULT_CHARACTERS]}\n[cut off]"


def main() -> int:
    recording = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("tool_calls.json"))
    calls = json.loads(recording.read_text())
    differ = 0
    # Such code has no business on the network. When the block ends, also by an error, so does the sandbox.
    with Sandbox.create(allow_internet_access=False) as sandbox:
        for call in calls:
            result = answer(sandbox, call)
            last_line = (result.strip().splitlines() or ["(nothing)"])[-1]
            print(f"{call['id']} {call['name']}: {last_line}", flush=True)
            if call["expect"] not in result:
                differ += 1
                print(f"  expected {call['expect']!r} in {result!r}", flush=True)
    print("every call went as recorded" if differ == 0 else f"{differ} of {len(calls)} calls went differently")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
