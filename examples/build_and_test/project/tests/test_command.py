"""The built program, as a user runs it."""

import subprocess
import sys
import unittest


def durations(*arguments):
    command = [sys.executable, "dist/durations.pyz", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


class Command(unittest.TestCase):
    def test_it_adds(self):
        self.assertEqual(durations("50m", "1h20m").stdout, "2h10m\n")

    def test_it_explains(self):
        ended = durations("soon")
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(ended.stderr, "durations: 'soon' is not a duration; write it like 1h30m\n")
