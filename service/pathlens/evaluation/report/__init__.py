"""The report of an evaluation: a page for people, JSON and CSV for programs."""
