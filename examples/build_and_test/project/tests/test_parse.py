import unittest

from durations import parse


class Parse(unittest.TestCase):
    def test_units(self):
        for text, seconds in [("45s", 45), ("2m", 120), ("1h", 3600), ("2d", 172800)]:
            self.assertEqual(parse(text), seconds, text)

    def test_sums(self):
        self.assertEqual(parse("1h30m"), 5400)
        self.assertEqual(parse("1d1h1m1s"), 90061)

    def test_what_is_none(self):
        for text in ["", "h", "90", "1h 30m", "-1s", "1w"]:
            with self.assertRaisesRegex(ValueError, "is not a duration"):
                parse(text)

    def test_order(self):
        for text in ["30m1h", "1s1s"]:
            with self.assertRaisesRegex(ValueError, "twice, or a smaller one first"):
                parse(text)
