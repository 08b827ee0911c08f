"""What the pages quote of Celery is what the installed Celery says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import consumer

PAGE = (Path(__file__).parents[3] / "docs" / "kombu.md").read_text("utf-8")
_, _, REST = PAGE.partition("## What Celery logs when the connection is lost\n")
SECTION, _, _ = REST.partition("\n## ")
QUOTED = [
    " ".join(lines.replace("\n> ", " ").split()) for lines in re.findall(r"^> (.*(?:\n> .*)*)", SECTION, re.MULTILINE)
]


def said(text: str) -> str:
    return " ".join(text.split())


def test_what_celery_says_of_acks_after_a_lost_connection_is_quoted_word_by_word() -> None:
    warning, terminating = QUOTED

    assert said(consumer.CANCEL_TASKS_BY_DEFAULT).startswith(warning)
    assert said(consumer.TERMINATING_TASK_ON_RESTART_AFTER_A_CONNECTION_LOSS) == terminating.replace("…", "%s")


def test_the_filter_in_the_page_hides_the_warning() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        exec(code, {})
        warnings.warn(consumer.CANCEL_TASKS_BY_DEFAULT, CPendingDeprecationWarning, stacklevel=1)
        warnings.warn("another", CPendingDeprecationWarning, stacklevel=1)

    assert [str(one.message) for one in seen] == ["another"]
