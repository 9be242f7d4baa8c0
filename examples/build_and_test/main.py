#!/usr/bin/env python3
"""A CI job: a project is built once, and its tests run at the same time in copies of the sandbox that built it.

Each copy goes on from where the sandbox was, memory and files, so nothing is set up twice; and each is a machine of its
own, so tests that use the same port or file do not get into each other's way.

    belljar up --detach && eval "$(belljar env)" && pip install tensorlake
    python3 main.py [PROJECT]

A project is a directory with `build.sh` and Python unit tests in `tests/`.
"""

import io
import re
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tensorlake.sandbox import CommandResult, Sandbox

SHARDS = 3
PROJECT = "/workspace/project"
# A test that hangs must not hang the job.
SHARD_SECONDS = 300


def checked(ran: CommandResult, what: str) -> None:
    if ran.exit_code != 0:
        sys.exit(f"{what} failed with exit code {ran.exit_code}:\n{ran.stdout}{ran.stderr}")


def build(sandbox: Sandbox, project: Path) -> None:
    """Takes the project into the sandbox and builds it there."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(project, arcname="project")
    sandbox.write_file("/tmp/project.tar.gz", archive.getvalue())
    checked(sandbox.run("tar", ["-xzf", "/tmp/project.tar.gz", "-C", "/workspace"]), "unpacking the project")
    checked(sandbox.run("sh", ["build.sh"], working_dir=PROJECT), "the build")


def test(sandbox: Sandbox, files: list[str]) -> CommandResult:
    arguments = ["-m", "unittest", *(f"tests/{name}" for name in files)]
    return sandbox.run("python3", arguments, working_dir=PROJECT, timeout=SHARD_SECONDS).value


def fork(sandbox: Sandbox, times: int, job: ExitStack) -> list[Sandbox]:
    """Running copies of the sandbox, which end with the job."""
    forks = []
    for copy in sandbox.copy(times=times).sandboxes:
        forks.append(Sandbox.connect(copy.sandbox_id))
        job.callback(forks[-1].terminate)
    return forks


def report(shard: int, files: list[str], ran: CommandResult) -> None:
    tests = re.search(r"^Ran (\d+) test", ran.stderr, re.MULTILINE)
    verdict = "timed out" if ran.timed_out else "passed" if ran.exit_code == 0 else "failed"
    print(f"shard {shard}: {tests[1] if tests else 0} tests of {', '.join(files)}: {verdict}")
    if verdict != "passed":
        print(ran.stdout + ran.stderr)


def main() -> int:
    project = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("project")
    names = sorted(path.name for path in project.glob("tests/test_*.py"))
    if not names:
        sys.exit(f"{project} has no tests/test_*.py: name the directory of a project")
    shards = [files for files in (names[shard::SHARDS] for shard in range(SHARDS)) if files]
    with Sandbox.create() as sandbox, ExitStack() as job:
        build(sandbox, project)
        print(f"built; {len(shards)} copies run the tests", flush=True)
        forks = fork(sandbox, len(shards), job)
        with ThreadPoolExecutor(len(shards)) as pool:
            results = list(pool.map(test, forks, shards))
    for shard, (files, ran) in enumerate(zip(shards, results), 1):
        report(shard, files, ran)
    failed = sum(ran.exit_code != 0 for ran in results)
    print(f"{failed} of {len(shards)} shards failed" if failed else "every shard passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
