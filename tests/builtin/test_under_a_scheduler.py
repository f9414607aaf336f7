"""The built-in tasks as jobs of an APScheduler: the policy and the job's id reach them there."""

from __future__ import annotations

import asyncio

import pytest
from apscheduler import AsyncScheduler, JobOutcome

from duetime import builtin
from duetime.builtin.http import http_request
from duetime.builtin.notify import notify

from .sink import Sink

# apprise imports it where Python still has it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

WITHIN = 20  # seconds; only a broken build gets there


async def test_jobs_run_under_the_policy_of_the_context_their_scheduler_was_started_in(sink: Sink) -> None:
    builtin.configure(allow_private=True)
    async with asyncio.timeout(WITHIN), AsyncScheduler() as scheduler:
        await scheduler.start_in_background()
        builtin.configure(allow_private=False)  # comes too late for this scheduler
        request = await scheduler.add_job(
            http_request, kwargs={"url": sink.url("/request")}, job_executor="async", result_expiration_time=WITHIN
        )
        message = await scheduler.add_job(
            notify,
            kwargs={"urls": f"json://127.0.0.1:{sink.port}/message", "body": "hello"},
            job_executor="threadpool",
            result_expiration_time=WITHIN,
        )
        results = [await scheduler.get_job_result(job) for job in (request, message)]
    assert [result.outcome for result in results if result] == [JobOutcome.success] * 2
    came = {received.target: received for received in sink.received}
    assert came["/request"].headers["idempotency-key"] == str(request)
    assert "/message" in came
