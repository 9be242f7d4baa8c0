"""`durations.pyz 1h30m 45s`: prints the sum."""

import sys

from durations import parse, render


def main() -> None:
    try:
        print(render(sum(parse(text) for text in sys.argv[1:])))
    except ValueError as error:
        sys.exit(f"durations: {error}")
