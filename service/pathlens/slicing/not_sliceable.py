"""What is raised where a pathway network cannot be cut out."""


class NotSliceable(Exception):  # noqa: N818 - no failure: the caller computes with masks instead
    """A pathway network cannot be cut out of its classifier exactly; the message says why."""
