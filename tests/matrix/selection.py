"""What the runs of ``make matrix`` leave out, and which tests go past the pooler: each with the reason.

Names are beginnings of tests' names, as pytest writes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

_ONCE: Mapping[str, Sequence[str]] = {
    "starts an application or `duetime serve` as a user does: slow, and about what is above the store": (
        "tests/end_to_end/",
        "tests/test_docs.py",
        "tests/test_example.py",
        "tests/test_readme.py",
    ),
    "is about the embedded server": ("tests/test_local.py", "tests/chaos/"),
    "is about measuring": ("tests/benchmarks/",),
}

# All of these run each time, also those that need no database.
_HEART = (
    "tests/store/",
    "tests/faults/",
    "tests/nodes/",
    "tests/test_broker",
    "tests/test_execution.py",
    "tests/test_many.py",
    "tests/test_poison.py",
    "tests/test_scheduler.py",
    "tests/test_shutdown.py",
    "tests/test_supervisor.py",
)

_PAST_THE_POOLER: Mapping[str, Sequence[str]] = {
    "hears other processes: nobody is heard through a pooler, which test_behind_a_pooler.py is about": (
        "tests/test_broker.py",
        "tests/nodes/",
        "tests/faults/test_sessions.py::test_a_listening_connection_that_is_killed_costs_a_moment",
        "tests/store/test_stock_defects_of_the_loops.py::test_with_the_newest_anyio_an_event_reaches_another_process",
        "tests/store/test_stock_defects_of_the_loops.py::test_an_idle_listening_connection_is_queried",
    ),
    "looks at the server's sessions, which are the pooler's and not the clients'": (
        "tests/store/test_connections.py::test_no_more_connections_are_open_than_the_size_says",
        "tests/store/test_connections.py::test_nothing_is_left_open_when_they_are_closed",
        "tests/store/test_stock_scheduler.py::test_the_store_takes_an_address_instead_of_an_engine",
        "tests/test_supervisor.py::test_nothing_is_left_when_a_node_has_stopped",
    ),
    "counts round trips or looks at what the driver prepares: behind a pooler nothing is prepared": (
        "tests/store/test_opening.py",
    ),
    "has the server asked within a second whether it is at work for a session, which takes 10 s behind a pooler": (
        "tests/faults/test_network.py::test_connections_that_are_half_open_are_given_up",
    ),
    "connects with a role that the pooler does not know": (
        "tests/store/test_schema.py::test_a_role_that_may_not_make_a_schema_uses_the_one_that_is_there",
        "tests/v3/test_cutover.py::test_without_permission_nothing_is_begun",
        "tests/v3/test_cutover.py::test_a_role_that_may_not_change_v3s_table_leaves_that_to_v3s_own",
        "tests/v3/test_rollback.py::test_without_permission_to_write_nothing_is_begun",
        "tests/v3/test_sources.py::test_a_user_without_the_right_to_read_is_told_so",
    ),
    "has a database refuse connections, which a pooler still does for a while when they are allowed again": (
        "tests/v3/test_sources.py::test_a_database_that_goes_away_in_the_middle_raises_a_typed_error",
    ),
}


def reason_to_leave_out(nodeid: str, fixtures: Collection[str], *, other_versions: bool) -> str | None:
    """Return why a run on another server leaves the test out; None if it does not.

    :param fixtures: names of the fixtures that the test uses
    :param other_versions: whether the run has other versions of Python packages too
    """
    if reason := _reason(_ONCE, nodeid):
        return reason
    if other_versions or "server" in fixtures or nodeid.startswith(_HEART):
        return None
    return "needs no database"


def reason_to_go_past(nodeid: str) -> str | None:
    """Return why the test cannot go through a pooler in transaction mode; None if it can."""
    return _reason(_PAST_THE_POOLER, nodeid)


def _reason(reasons: Mapping[str, Sequence[str]], nodeid: str) -> str | None:
    return next((reason for reason, names in reasons.items() if nodeid.startswith(tuple(names))), None)
