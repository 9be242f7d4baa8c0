#!/usr/bin/env python3
"""A service that stays: restarted when it crashes, reached through the ingress, asleep while nobody asks for it.

    belljar up --detach && eval "$(belljar env)" && pip install tensorlake
    python3 main.py
"""

import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from tensorlake.sandbox import (
    ManagedProcessHealthStatus,
    ManagedProcessInfo,
    ProcessHealthCheck,
    ProcessHealthCheckType,
    RestartPolicy,
    RestartPolicyConfig,
    Sandbox,
)

PORT = 8080
START_SECONDS = 60


def start(sandbox: Sandbox) -> None:
    sandbox.upload_file(Path(__file__).with_name("server.py"), "/workspace/server.py")
    sandbox.start_process(
        "python3",
        ["/workspace/server.py"],
        name="web",
        restart=RestartPolicyConfig(policy=RestartPolicy.ALWAYS, initial_backoff_ms=100),
        # A service that hangs is restarted, too. The delay is what it may take to start.
        health_check=ProcessHealthCheck(
            type=ProcessHealthCheckType.HTTP, port=PORT, path="/health", initial_delay_ms=500, failure_threshold=20
        ),
    )


def wait_until_healthy(sandbox: Sandbox, restarts: int) -> ManagedProcessInfo:
    """Waits for the life of the service that follows so many restarts."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        web = sandbox.get_process("web").managed
        if web.restart_count >= restarts and web.health_status == ManagedProcessHealthStatus.HEALTHY:
            return web
        time.sleep(0.2)
    raise TimeoutError(f"the service is not healthy after {START_SECONDS} seconds: {web}")


def visit(sandbox: Sandbox, path: str) -> str:
    """Asks the service as any HTTP client can. With an ingress domain, the URL alone would say which sandbox and port."""
    headers = {
        "Authorization": f"Bearer {os.environ['TENSORLAKE_API_KEY']}",
        "X-Tensorlake-Sandbox-Id": sandbox.sandbox_id,
        "X-Tensorlake-Sandbox-Port": str(PORT),
    }
    request = urllib.request.Request(os.environ["TENSORLAKE_API_URL"] + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        return f"status {error.code}"


def main() -> None:
    # Only a sandbox that has a name can sleep: the others end when they are idle.
    with Sandbox.create(name=f"service-{uuid.uuid4().hex[:8]}", exposed_ports=[PORT]) as sandbox:
        start(sandbox)
        wait_until_healthy(sandbox, restarts=0)
        print(visit(sandbox, "/"))
        print(visit(sandbox, "/"), flush=True)

        print("crash:", visit(sandbox, "/crash"))
        web = wait_until_healthy(sandbox, restarts=1)
        print(f"restarted after exit code {web.last_exit.exit_code}: {visit(sandbox, '/')}", flush=True)

        # This is what happens by itself when nobody has asked for it for as long as `timeout_secs` says.
        sandbox.suspend()
        print(f"{sandbox.status.value}; the next visitor wakes it: {visit(sandbox, '/')}")
        print(f"now {sandbox.status.value}, restarts: {sandbox.get_process('web').managed.restart_count}")


if __name__ == "__main__":
    sys.exit(main())
