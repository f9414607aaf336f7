"""Whatever nodes do, in whatever order, and wherever they crash: the store keeps the promises of a small model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from duetime.settings import DatabaseUrl

from ..template import TEMPLATE
from .model import CLOCK, Nodes, World


async def _administer(url: DatabaseUrl, *statements: str) -> None:
    connection = await asyncpg.connect(**url.asyncpg_arguments())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def world(server: DatabaseUrl) -> Iterator[World]:
    """A database whose clock the test sets."""
    name = f"t{os.getpid()}_model"
    url = replace(server, database=name)
    with asyncio.Runner() as runner:
        runner.run(
            _administer(
                server,
                f"create database {name} template {TEMPLATE}",
                f"alter database {name} set search_path = hand, pg_catalog",
            )
        )
        runner.run(_administer(url, CLOCK))
        world = World(url, runner)
        yield world
        world.close()
        runner.run(_administer(server, f"drop database {name} with (force)"))


def test_the_store_keeps_its_promises_in_every_order_of_steps(world: World) -> None:
    class Machine(Nodes):
        pass

    Machine.world = world
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(os.environ.get("EX", "60")),
            stateful_step_count=int(os.environ.get("ST", "12")),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
