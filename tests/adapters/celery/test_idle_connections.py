"""How many connections an idle worker holds: as many as docs/kombu.md says."""

from __future__ import annotations

from pgqrs_core.testing import eventually
from tests.support.database import OURS

from .celery_support import Workers


def test_a_worker_with_children_that_stored_results_and_published_holds_two(crew: Workers) -> None:
    conf = {"result_backend": crew.url, "task_ignore_result": False}
    crew.start("prefork", "-c", "2", conf=conf)
    for number in range(10):
        crew.tasks.pass_on.delay(number)
    crew.wait_for(*(f"say {number}" for number in range(10)))
    assert crew.sql(OURS)[0][0] > 2

    eventually(lambda: crew.sql(OURS) == [(2,)], 45)

    crew.tasks.say.delay("again")
    crew.wait_for("say again")
