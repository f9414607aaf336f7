"""What can go wrong in a run, and ends as the reason in a row."""

from __future__ import annotations


class PeerFailed(Exception):
    """A peer cannot be installed, hangs or fails. The text is the reason that its row gives."""


class NotMeasurable(PeerFailed):
    """The figure has no meaning for this peer."""
