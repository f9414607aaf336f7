# -*- coding: utf-8 -*-
"""The application whose jobs the rows hold. It runs on Python 2.7 too, and inside each release of APScheduler 3."""

import datetime
from collections import namedtuple

try:
    import enum

    from colours import Colour, Level
except ImportError:  # Python 2.7
    enum = None

try:
    import goods
except (ImportError, SyntaxError):  # before Python 3.7
    goods = None

from apscheduler.triggers.base import BaseTrigger

Point = namedtuple("Point", "x y")


def remind(*args, **kwargs):
    """Called by the jobs that take whatever arguments."""


def renamed_since(to):
    """Called by a job of which the application has lost the function."""


class Shop(object):
    """Its methods are jobs: APScheduler stores the object as the first argument."""

    def __init__(self, town):
        self.town = town

    def open(self, hour=9):
        """A bound method."""

    @classmethod
    def close(cls, hour=18):
        """A class method."""

    @staticmethod
    def count(what="apples"):
        """A static method."""

    def __call__(self):
        """An instance that is called."""


class Money(object):
    """A class without a stored form."""

    def __init__(self, amount):
        self.amount = amount


class OddMinutes(BaseTrigger):
    """A trigger of the application's own."""

    def __init__(self, minute=1):
        self.minute = minute

    def __getstate__(self):
        return {"minute": self.minute}

    def __setstate__(self, state):
        self.minute = state["minute"]

    def get_next_fire_time(self, previous_fire_time, now):
        start = previous_fire_time or now
        return start + datetime.timedelta(minutes=2)
