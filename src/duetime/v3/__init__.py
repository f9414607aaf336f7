"""Off APScheduler 3: its table of jobs, read, planned, proven and carried over, and back.

The verbs of ``duetime migrate v3`` for programs::

    from duetime.v3 import cutover, open_scheduler, preparer, rollback, status

    async with open_scheduler(Settings()) as scheduler:
        result = await cutover("sqlite:///jobs.sqlite", scheduler, preparer(scheduler, context, Allowed()))
"""

from .carrying import in_processes as in_processes
from .carrying import preparer as preparer
from .cutover import Prepared as Prepared
from .cutover import cutover as cutover
from .outcomes import Result as Result
from .outcomes import RowOutcome as RowOutcome
from .places import open_scheduler as open_scheduler
from .planning import Context as Context
from .planning import plan as plan
from .reading import Allowed as Allowed
from .reading import read as read
from .rollback import rollback as rollback
from .standing import Standing as Standing
from .standing import status as status
