"""The serializer keeps the contract of pgqrs, and the plugin does what it says."""

from pgqrs_hello import CsvRows, Rows
from pgqrs_hello import plugin as hello
from pgqrs_hello.journal import add

from pgqrs_core import Plugins
from pgqrs_core.events import Consumed, Draft, EnqueueBatch, Outcome
from pgqrs_core.testing.by_hand import play
from pgqrs_core.testing.serializers import SerializerConformance


class TestCsv(SerializerConformance):
    serializer = CsvRows()
    payloads = (Rows([["a", "b"], ['say "hi"', "ü\n,"]]), Rows())
    typed = ((Rows([["a"]]), Rows),)
    misfits = ((Rows([["a"]]), int),)
    unfit = ([["a"]], Rows([[1]]))
    reads_anything = True


def test_rows_are_greeted_as_configured():
    plugins = Plugins.core()
    plugins.register(hello, "hello", greeting="moin")
    batch = EnqueueBatch("q", "native", [Draft("q", b"", "text/csv"), Draft("q", b"1", "application/json")])

    plugins.hooks.before_enqueue(batch)

    assert [draft.headers for draft in batch.drafts] == [{"greeting": "moin"}, None]


def test_the_journal_writes_what_it_counted_once():
    one, written = hello.Hello("hi"), []
    one.write = lambda queue, adapter, sums: written.append((queue, sums.settled))
    one.pgqrs_after_consume(Consumed.of("q", "native", [Outcome(1, "acked", 1, 0.1), Outcome(2, "acked", 1, 0.1)]))

    one.flush()
    one.flush()

    assert written == [("q", {"acked": 2})]


def test_what_it_counted_is_added_to_the_table():
    assert play(add("q", {"acked": 2}), []).params(0) == {"queue": "q", "outcome": "acked", "count": 2}
