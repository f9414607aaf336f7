"""The address of a PostgreSQL database in every form that platforms and tools write; needs no driver."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

from .errors import InvalidSettings, did_you_mean

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
TARGET_SESSION_ATTRS = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
DEFAULT_PORT = 5432

_EXAMPLE = "postgresql://user:password@host:5432/database"
_SSL_SWITCHES = {
    "true": "require",
    "1": "require",
    "on": "require",
    "false": "disable",
    "0": "disable",
    "off": "disable",
}

# asyncpg takes these from the text of an address only, not as keyword arguments.
_TLS_KEYS = frozenset(
    {
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    }
)
# asyncpg has no SCRAM channel binding; every address that Neon shows asks for it, so it must not be an error.
_DROPPED_KEYS = frozenset({"channel_binding"})


@dataclass(frozen=True, slots=True, repr=False)
class DatabaseUrl:
    """One PostgreSQL database and how to connect to it. ``str`` and ``repr`` never show the password.

    :ivar host: host name, IP address or directory of the Unix socket; None leaves it to ``PGHOST`` and the
        driver's defaults
    :ivar fallbacks: further ``(host, port)`` pairs, tried in this order
    :ivar sslmode: one of libpq's modes; None is the driver's default (``prefer`` over TCP)
    :ivar connect_timeout: seconds for opening a connection; None is the driver's default (60 s)
    :ivar statement_cache_size: prepared statements kept per connection; 0: none; None: the default (100)
    :ivar server_settings: run-time parameters of every session (``application_name``, ``search_path``, …)
    :ivar tls: ``sslrootcert``, ``sslcert`` and the like, as given
    :ivar ignored: names of query parameters that have no meaning for asyncpg and are left out
    """

    database: str
    host: str | None = None
    port: int = DEFAULT_PORT
    user: str | None = None
    password: str | None = None
    sslmode: str | None = None
    fallbacks: tuple[tuple[str, int], ...] = ()
    connect_timeout: float | None = None
    statement_cache_size: int | None = None
    target_session_attrs: str | None = None
    server_settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    tls: Mapping[str, str] = field(default_factory=dict, hash=False)
    ignored: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> DatabaseUrl:
        """Read an address as libpq, SQLAlchemy or a hosting platform writes it.

        ``postgres://``, ``postgresql://`` and ``postgresql+driver://`` mean the same. Query parameters are
        libpq's (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS), and ``ssl``,
        ``statement_cache_size`` and ``prepared_statement_cache_size`` of asyncpg and SQLAlchemy.
        ``channel_binding`` is dropped, because asyncpg has none; others are listed in :attr:`ignored`.

        :raises InvalidSettings: if it is not such an address; the message never contains the password
        """
        authority, path, query = _split(text)
        credentials, at, host_list = authority.rpartition("@")
        user, _, password = credentials.partition(":")
        parameters = _parameters(query)
        if not at and authority and "@" in path + query and "user" not in parameters:
            raise _invalid("a user and password whose special characters are percent-encoded", "an @ after the host")

        named = [_host_and_port(entry) for entry in host_list.split(",")] if host_list else []
        if listed := parameters.pop("host", ""):
            named = [_host_and_port(entry) for entry in listed.split(",")]
        else:
            named = [(_decode(host), port) for host, port in named]
        hosts = _with_ports(named, parameters.pop("port", ""))
        database = parameters.pop("dbname", "") or parameters.pop("database", "") or _decode(path)
        if not database:
            raise _invalid("the name of a database after the host", "none")
        user = parameters.pop("user", "") or _decode(user)
        password = parameters.pop("password", "") or _decode(password)
        settings = _server_settings(parameters)
        return cls(
            database=database,
            host=hosts[0][0] if hosts else None,
            port=hosts[0][1] if hosts else DEFAULT_PORT,
            fallbacks=hosts[1:],
            user=user or None,
            password=password or None,
            sslmode=_sslmode(parameters),
            connect_timeout=_number(parameters, "connect_timeout") or None,
            statement_cache_size=_cache_size(parameters),
            target_session_attrs=_choice(parameters, "target_session_attrs", TARGET_SESSION_ATTRS),
            server_settings=settings,
            tls={key: parameters.pop(key) for key in sorted(_TLS_KEYS & parameters.keys())},
            ignored=tuple(sorted(parameters.keys() - _DROPPED_KEYS)),
        )

    @property
    def is_pooled(self) -> bool:
        """Whether this is a Neon pooler: PgBouncer in transaction mode, so no LISTEN and no session state."""
        return any(_direct_host(host) != host for host, _ in self._hosts)

    @property
    def direct(self) -> DatabaseUrl:
        """The same database past Neon's pooler: a Neon host's first label without ``-pooler``."""
        hosts = [(_direct_host(host), port) for host, port in self._hosts]
        return replace(self, host=hosts[0][0], fallbacks=tuple(hosts[1:])) if hosts else self

    @property
    def text(self) -> str:
        """The address with its password, in libpq's form, for handing on to another process."""
        return self._write(show_secrets=True)

    @property
    def redacted(self) -> str:
        """The address with ``***`` for the password, fit for logs and errors."""
        return self._write(show_secrets=False)

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for ``asyncpg.connect`` and ``create_pool``, the password among them.

        What the address leaves open is left to asyncpg and its environment (``PGHOST``, ``~/.pgpass``).
        """
        tls = dict(self.tls)
        arguments: dict[str, Any] = {"database": self.database}
        if self.host is not None:
            hosts = self._hosts
            arguments["host"] = [host for host, _ in hosts] if self.fallbacks else self.host
            arguments["port"] = [port for _, port in hosts] if self.fallbacks else self.port
        if tls.get("sslrootcert") == "system":
            # libpq's "system": the machine's certificates and verify-full. asyncpg's word for it is True.
            del tls["sslrootcert"]
            arguments["ssl"] = True
        elif self.sslmode is not None:
            arguments["ssl"] = self.sslmode
        if tls:
            arguments["dsn"] = f"postgresql://?{_write_query(tls)}"
        optional = {
            "user": self.user,
            "password": self.password,
            "timeout": self.connect_timeout,
            "statement_cache_size": self.statement_cache_size,
            "target_session_attrs": self.target_session_attrs,
            "server_settings": dict(self.server_settings) or None,
        }
        return arguments | {key: value for key, value in optional.items() if value is not None}

    @property
    def _hosts(self) -> tuple[tuple[str, int], ...]:
        return () if self.host is None else ((self.host, self.port), *self.fallbacks)

    def _write(self, *, show_secrets: bool) -> str:
        parameters = self._written_parameters(show_secrets=show_secrets)
        authority = quote(self.user or "", safe="")
        if self.password is not None:
            authority += ":" + (quote(self.password, safe="") if show_secrets else "***")
        if authority:
            authority += "@"
        if any(host.startswith("/") for host, _ in self._hosts):
            parameters["host"] = ",".join(host for host, _ in self._hosts)
            parameters["port"] = ",".join(str(port) for _, port in self._hosts)
        else:
            authority += ",".join(_write_host(host, port) for host, port in self._hosts)
        query = f"?{_write_query(parameters)}" if parameters else ""
        return f"postgresql://{authority}/{quote(self.database, safe='')}{query}"

    def _written_parameters(self, *, show_secrets: bool) -> dict[str, str]:
        settings = dict(self.server_settings)
        name = settings.pop("application_name", None)
        optional = {
            "sslmode": self.sslmode,
            "target_session_attrs": self.target_session_attrs,
            "connect_timeout": None if self.connect_timeout is None else f"{self.connect_timeout:g}",
            "statement_cache_size": None if self.statement_cache_size is None else str(self.statement_cache_size),
            "application_name": name,
            "options": _write_options(settings) or None,
            **self.tls,
        }
        if "sslpassword" in optional and not show_secrets:
            optional["sslpassword"] = "***"
        return {key: value for key, value in optional.items() if value is not None}

    def __str__(self) -> str:
        return self.redacted

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.redacted!r})"


def _invalid(expected: str, got: str) -> InvalidSettings:
    return InvalidSettings(f"expected a PostgreSQL address ({_EXAMPLE}) with {expected}, got {got}.")


def _split(text: str) -> tuple[str, str, str]:
    """Cut an address into authority, path and query, as libpq does: no fragments, # is a character."""
    scheme, separator, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        # Nothing of the text is shown: without a scheme there is no telling which part of it is a password.
        raise InvalidSettings(
            f"expected a PostgreSQL address ({_EXAMPLE}), got text that does not begin with postgresql://."
        )
    if not re.fullmatch(r"postgres(ql)?(\+[a-z0-9_]+)?", scheme):
        raise InvalidSettings(
            f"expected a PostgreSQL address ({_EXAMPLE}), got the scheme {scheme!r}. Duetime keeps its "
            f"schedules in PostgreSQL; leave the address out to use the embedded one."
        )
    if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in rest):
        raise _invalid("printable characters only", "a control character or bytes that are not UTF-8")
    before_query, _, query = rest.partition("?")
    authority, _, path = before_query.partition("/")
    return authority, path, query


def _decode(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _invalid("percent-encoded UTF-8", "percent-encoded bytes that are not UTF-8") from None
    if "\0" in decoded:
        raise _invalid("printable characters only", "%00")
    return decoded


def _parameters(query: str) -> dict[str, str]:
    """Read the query: the last one of a name counts, and + is a plus sign (libpq's rules)."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    return {_decode(name): _decode(value) for name, _, value in pairs}


def _with_ports(hosts: list[tuple[str, int]], listed: str) -> tuple[tuple[str, int], ...]:
    """Apply libpq's separate list of ports, which wins: one for all hosts, or one for each."""
    if not listed or not hosts:
        return tuple(hosts)
    ports = [_port(port) for port in listed.split(",")]
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise _invalid("one port, or as many ports as hosts", f"{len(ports)} for {len(hosts)} hosts")
    return tuple((host, port) for (host, _), port in zip(hosts, ports, strict=True))


def _host_and_port(entry: str) -> tuple[str, int]:
    if entry.startswith("/") or (entry.count(":") > 1 and not entry.startswith("[")):
        return entry, DEFAULT_PORT  # a Unix socket's directory, or a bare IPv6 address in ?host=
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.%\w]+)\](?::(.*))?", entry)
    host, port = (bracketed[1], bracketed[2] or "") if bracketed else entry.partition(":")[::2]
    if not host or "[" in host or "]" in host or any(character.isspace() for character in host):
        raise _invalid("a host name, an IP address ([…] around IPv6) or a socket directory", "none that can be read")
    return host, _port(port) if port else DEFAULT_PORT


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        # The text is not shown: in postgresql://user:pass/word@host it is the password's first part.
        raise _invalid(
            "a port from 1 to 65535",
            "something else after the colon (percent-encode / and ? in a password as %2F and %3F)",
        )
    return int(text)


def _choice(parameters: dict[str, str], name: str, known: tuple[str, ...]) -> str | None:
    value = parameters.pop(name, None)
    if value is not None and value not in known:
        raise InvalidSettings(
            f"expected {name} in the database address to be one of {', '.join(known)}, got {value!r}"
            f"{did_you_mean(value, known)}"
        )
    return value


def _sslmode(parameters: dict[str, str]) -> str | None:
    """``sslmode`` is libpq's word, ``ssl`` that of asyncpg, SQLAlchemy and Node; the former wins."""
    ssl = parameters.pop("ssl", None)
    if ssl is not None:
        parameters.setdefault("sslmode", _SSL_SWITCHES.get(ssl.lower(), ssl))
    return _choice(parameters, "sslmode", SSL_MODES)


def _number(parameters: dict[str, str], name: str) -> int | None:
    value = parameters.pop(name, None)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise InvalidSettings(f"expected {name} in the database address to be a whole number, got {value!r}.")
    return int(value)


def _cache_size(parameters: dict[str, str]) -> int | None:
    """Read asyncpg's and SQLAlchemy's names for the cache of prepared statements; the smaller counts."""
    sizes = [_number(parameters, name) for name in ("statement_cache_size", "prepared_statement_cache_size")]
    return min((size for size in sizes if size is not None), default=None)


_OPTION = re.compile(r"(?:-c\s*|--)([A-Za-z_][\w.-]*)=((?:\\.|[^\s\\])*)(?=\s|$)")


def _server_settings(parameters: dict[str, str]) -> dict[str, str]:
    """Take ``application_name`` and what ``options=-c name=value`` asks for out of the parameters.

    Settings are sent by name, because poolers refuse or drop a session's ``options``. What is not a setting
    (Neon's ``endpoint=…``) stays there.
    """
    options = parameters.pop("options", "")
    settings = {match[1].replace("-", "_"): re.sub(r"\\(.)", r"\1", match[2]) for match in _OPTION.finditer(options)}
    if rest := " ".join(_OPTION.sub("", options).split()):
        settings["options"] = rest
    if name := parameters.pop("application_name", "") or parameters.pop("fallback_application_name", ""):
        settings["application_name"] = name
    return settings


def _write_options(settings: Mapping[str, str]) -> str:
    rest = {key: value for key, value in settings.items() if key != "options"}
    words = [f"-c {key}=" + re.sub(r"([\s\\])", r"\\\1", value) for key, value in rest.items()]
    return " ".join([*words, *([settings["options"]] if "options" in settings else [])])


def _write_host(host: str, port: int) -> str:
    name = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
    return name if port == DEFAULT_PORT else f"{name}:{port}"


def _write_query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='/')}" for name, value in parameters.items())


def _direct_host(host: str) -> str:
    label, dot, domain = host.partition(".")
    if label.endswith("-pooler") and f".{domain.lower()}".endswith((".neon.tech", ".neon.build")):
        return label.removesuffix("-pooler") + dot + domain
    return host
