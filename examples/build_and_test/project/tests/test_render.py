import unittest

from durations import parse, render


class Render(unittest.TestCase):
    def test_shortest(self):
        for seconds, text in [(0, "0s"), (60, "1m"), (5400, "1h30m"), (90061, "1d1h1m1s")]:
            self.assertEqual(render(seconds), text)

    def test_is_read_back(self):
        for seconds in range(0, 200_000, 997):
            self.assertEqual(parse(render(seconds)), seconds)

    def test_nothing_less_than_nothing(self):
        with self.assertRaises(ValueError):
            render(-1)
