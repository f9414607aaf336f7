"""The application's enums, in a module that imports nothing of APScheduler 3, as Duetime has to import it."""

import enum


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2
