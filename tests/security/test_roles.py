"""What each role may do and what it may not: every operation, tried by everybody."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from pgqrs_native import AsyncClient
from pgqrs_native.command.app import run
from psycopg import sql

from pgqrs_core.config import Config
from pgqrs_core.drivers import locks
from pgqrs_core.errors import InvalidArgument, NotPermitted, RoleMissing, TableLocked
from pgqrs_core.operations import doctor, roles
from pgqrs_core.sql import DUTIES

from .estate import Estate

EVERYBODY: Final = frozenset(DUTIES)


class Scene:
    """One program, with one duty, and what it finds to work on."""

    def __init__(self, estate: Estate, duty: str) -> None:
        self.estate = estate
        self.client = estate.client(estate.url(duty))
        self.owner = estate.owner

    @property
    def claimed(self) -> Any:
        """A message that somebody has just claimed."""
        self.owner.admin.purge_queue("jobs")
        self.owner.producer.enqueue("jobs", {"secret": 1})
        return self.owner.consumer.read("jobs")

    @property
    def dead(self) -> int:
        message = self.claimed
        self.owner.consumer.nack(message, bury=True, error="bad")
        return int(message.id)

    @property
    def archived(self) -> int:
        message = self.claimed
        self.owner.consumer.archive(message)
        return int(message.id)

    def spare_queue(self) -> str:
        name = f"spare {uuid.uuid4()}"
        self.owner.admin.create_queue(name)
        return name

    def in_transaction(self) -> None:
        with psycopg.connect(self.client.config.conninfo()) as connection:
            self.client.producer.enqueue("jobs", 1, connection=connection)

    def mixed(self) -> None:
        self.client.producer.batch_enqueue("jobs", [1, "two", b"three"], delay=1.0, ttl=60, headers={"a": 1})

    def waiting(self) -> None:
        self.owner.admin.purge_queue("jobs")
        assert self.client.consumer.read("jobs", wait=0.2) is None

    def take(self) -> None:
        self.owner.producer.enqueue("jobs", 1)
        assert self.client.consumer.read("jobs") is not None

    def examine(self) -> None:
        given = doctor.Circumstances("pgqrs", clock=lambda: 0.0)
        found = self.client.engine.run(doctor.examine, given)
        denied = [one for one in found if "may not do this" in one.summary]
        if denied:
            raise NotPermitted("", user="", schema="pgqrs", duty="observer", remedy=denied[0].summary) from None


class Act(NamedTuple):
    """Something that a program may try, and who can."""

    name: str
    do: Callable[[Scene], object]
    allowed: frozenset[str]


def act(name: str, do: Callable[[Scene], object], *allowed: str) -> Any:
    return pytest.param(Act(name, do, frozenset({*allowed, "admin"})), id=name)


ACTS = [
    act("enqueue", lambda s: s.client.producer.enqueue("jobs", {"a": 1}), "producer"),
    act("enqueue_delayed", lambda s: s.client.producer.enqueue_delayed("jobs", 1, 5.0), "producer"),
    act("batch_enqueue", lambda s: s.client.producer.batch_enqueue("jobs", [1, 2]), "producer"),
    act("batch_enqueue_with_everything", Scene.mixed, "producer"),
    act("enqueue_in_a_transaction", Scene.in_transaction, "producer"),
    act("read", Scene.take, "consumer"),
    act("read_and_wait", Scene.waiting, "consumer"),
    act("dequeue", lambda s: s.client.consumer.dequeue(s.claimed), "consumer"),
    act("archive", lambda s: s.client.consumer.archive(s.claimed), "consumer"),
    act("nack", lambda s: s.client.consumer.nack(s.claimed, error="bad"), "consumer"),
    act("dead_letter", lambda s: s.client.consumer.nack(s.claimed, bury=True), "consumer"),
    act("release", lambda s: s.client.consumer.release(s.claimed), "consumer"),
    act("extend", lambda s: s.client.consumer.extend_lock(s.claimed, 60), "consumer"),
    act("maintain", lambda s: s.client.admin.maintain(), "consumer"),
    act("peek", lambda s: s.client.admin.peek("jobs"), "consumer"),
    act("show_message", lambda s: s.client.admin.show_message("jobs", s.dead), "consumer"),
    act("delete_messages", lambda s: s.client.admin.delete_messages("jobs", [0]), "consumer"),
    act("list_dead", lambda s: s.client.admin.list_dead("jobs"), "consumer"),
    act("show_dead", lambda s: s.client.admin.show_dead("jobs", s.dead), "consumer"),
    act("replay_dead", lambda s: s.client.admin.replay_dead("jobs", [s.dead]), "consumer"),
    # Who may ack may remove.
    act("purge_dead", lambda s: s.client.admin.purge_dead("jobs", [s.dead]), "consumer"),
    act("purge_queue", lambda s: s.client.admin.purge_queue("jobs"), "consumer"),
    act("list_archive", lambda s: s.client.admin.list_archive("jobs")),
    act("replay_archive", lambda s: s.client.admin.replay_archive("jobs", [s.archived])),
    act("prune_archive", lambda s: s.client.admin.prune_archive("jobs", 0), "consumer"),
    act("queue_metrics", lambda s: s.client.admin.queue_metrics("jobs"), "consumer", "observer"),
    act("all_queues_metrics", lambda s: s.client.admin.all_queues_metrics(), "consumer", "observer"),
    act("doctor", Scene.examine, "consumer", "observer"),
    act("list_queues", lambda s: s.client.admin.list_queues(), *DUTIES),
    act("schema_version", lambda s: s.client.admin.schema_version(), *DUTIES),
    act("create_a_queue_that_is_there", lambda s: s.client.admin.create_queue("jobs", **JOBS), *DUTIES),
    act("create_queue", lambda s: s.client.admin.create_queue(f"new {uuid.uuid4()}")),
    act("alter_queue", lambda s: s.client.admin.alter_queue("jobs", max_body_bytes=1000)),
    act("pause_queue", lambda s: s.client.admin.pause_queue(s.spare_queue())),
    act("resume_queue", lambda s: s.client.admin.resume_queue(s.spare_queue())),
    act("delete_queue", lambda s: s.client.admin.delete_queue(s.spare_queue())),
    act("install", lambda s: s.client.admin.install()),
    act("uninstall", lambda s: s.client.admin.uninstall()),
]
#: The options of the queue of the estate; the matrix changes one of them.
JOBS: Final = {"max_attempts": 2, "backoff_base": 0.0}


@pytest.fixture(scope="module")
def scenes(estate: Estate) -> dict[str, Scene]:
    return {duty: Scene(estate, duty) for duty in DUTIES}


def refused_act(what: Act, scene: Scene) -> NotPermitted:
    with pytest.raises(NotPermitted) as caught:
        what.do(scene)
    return caught.value


@pytest.mark.parametrize("duty", [duty for duty in DUTIES if duty != "admin"])
@pytest.mark.parametrize("what", ACTS)
def test_each_role_may_do_what_it_is_for_and_nothing_else(what: Act, duty: str, scenes: dict[str, Scene]) -> None:
    scene = scenes[duty]
    scene.owner.admin.alter_queue("jobs", max_body_bytes=1_048_576)

    if duty in what.allowed:
        what.do(scene)
        return

    error = refused_act(what, scene)
    assert error.sqlstate == "42501"
    assert error.duty in {"anyone", *what.allowed}, error.duty
    assert "grant pgqrs_" in str(error)


@pytest.mark.parametrize("what", [each for each in ACTS if each.id != "uninstall"])
def test_an_administrator_may_do_everything(what: Act, scenes: dict[str, Scene]) -> None:
    scenes["admin"].owner.admin.alter_queue("jobs", max_body_bytes=1_048_576)

    what.do(scenes["admin"])


def test_an_administrator_may_uninstall_and_drop_the_roles(own_estate: Estate) -> None:
    admin = own_estate.client(own_estate.url("admin"))

    assert admin.admin.uninstall() == ["jobs"]

    assert own_estate.run("select relname from pg_class where relnamespace = 'pgqrs'::regnamespace") == []


def test_the_roles_go_only_when_that_is_asked_for(own_estate: Estate) -> None:
    admin = own_estate.owner.admin
    admin.uninstall()
    assert len(names_in(own_estate)) == len(DUTIES)

    admin.install(roles=True, role_prefix=own_estate.prefix)
    for duty in DUTIES:
        own_estate.run("drop role {}", f"{own_estate.prefix}_a_{duty}")
    own_estate._logins.clear()
    admin.uninstall(roles=True)

    assert names_in(own_estate) == []


def names_in(estate: Estate) -> list[Any]:
    return estate.run("select rolname from pg_roles where rolname = any({})", sql.Literal([*map(estate.role, DUTIES)]))


def test_a_program_without_any_role_is_told_which_to_ask_for(estate: Estate) -> None:
    nobody = estate.client(estate.login(f"{estate.prefix}_nobody"))

    with pytest.raises(NotPermitted, match=r"permission denied for .*pgqrs.*grant pgqrs_t\w+_producer to") as caught:
        nobody.producer.enqueue("jobs", 1)

    assert caught.value.user == f"{estate.prefix}_nobody"


def test_a_queue_that_an_administrator_creates_belongs_to_all_administrators(estate: Estate) -> None:
    first = estate.client(estate.url("admin"))
    other = estate.client(estate.login(f"{estate.prefix}_second", grant=estate.role("admin")))
    first.admin.create_queue("shared by all")

    estate.client(estate.url("producer")).producer.enqueue("shared by all", 1)
    assert estate.client(estate.url("consumer")).consumer.read("shared by all") is not None
    assert estate.client(estate.url("observer")).admin.queue_metrics("shared by all").in_flight == 1
    other.admin.delete_queue("shared by all")


#: What may be read of the text of messages, and by whom. Columns with a payload, or what quotes one.
BODIES: Final = ("body", "headers", "last_error")


@pytest.mark.parametrize("duty", ["producer", "observer"])
def test_whoever_does_not_consume_reads_no_body(duty: str, estate: Estate) -> None:
    tables = estate.run(
        "select c.oid::regclass::text, a.attname::text from pg_class c join pg_attribute a on a.attrelid = c.oid "
        "where c.relnamespace = 'pgqrs'::regnamespace and c.relkind in ('r', 'v') and a.attname = any({}) "
        "and c.relname ~ '^([qav]_|kombu_mail)'",
        sql.Literal(list(BODIES)),
    )
    assert len(tables) >= 3 + 2 + 3 + 2

    for table, column in tables:
        rights = estate.run(
            "select has_column_privilege({}, {}, {}, 'select'), has_table_privilege({}, {}, 'select')",
            *map(sql.Literal, (estate.role(duty), table, column, estate.role(duty), table)),
        )
        assert rights == [(False, False)], (table, column)


def test_an_observer_may_be_granted_the_bodies_of_one_queue(own_estate: Estate) -> None:
    observer = own_estate.client(own_estate.url("observer"))
    own_estate.owner.producer.enqueue("jobs", {"seen": True})
    with pytest.raises(NotPermitted):
        observer.admin.peek("jobs")

    own_estate.run("grant select on pgqrs.q_jobs to {}", own_estate.role("observer"))

    assert b"seen" in observer.admin.peek("jobs")[0].body


def test_nothing_is_anybodys_and_nothing_can_be_executed_by_anybody(estate: Estate) -> None:
    granted = estate.run(
        "select c.relname from pg_class c, aclexplode(c.relacl) a "
        "where c.relnamespace = 'pgqrs'::regnamespace and a.grantee = 0"
    )
    functions = estate.run(
        "select p.proname from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a "
        "where p.pronamespace = 'pgqrs'::regnamespace and a.grantee = 0"
    )
    schema = estate.run(
        "select privilege_type from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'pgqrs' and a.grantee = 0"
    )

    assert (granted, functions, schema) == ([], [], [])


def test_whatever_default_privileges_give_away_is_taken_back(pgqrs_dsn: str) -> None:
    with psycopg.connect(pgqrs_dsn) as connection:
        connection.execute("alter default privileges grant select on tables to public")
    estate = Estate(pgqrs_dsn, duties=())
    try:
        test_nothing_is_anybodys_and_nothing_can_be_executed_by_anybody(estate)
    finally:
        estate.close()


def test_no_role_but_the_administrators_owns_anything(estate: Estate) -> None:
    owners = estate.run(
        "select distinct pg_get_userbyid(relowner)::text from pg_class "
        "where relnamespace = 'pgqrs'::regnamespace and relkind in ('r', 'v', 'S')"
    )

    assert owners == [(estate.role("admin"),)]


def test_the_roles_cannot_log_in(estate: Estate) -> None:
    for duty in DUTIES:
        assert estate.run("select rolcanlogin from pg_roles where rolname = {}", sql.Literal(estate.role(duty))) == [
            (False,)
        ]


def test_installing_again_changes_nothing_and_keeps_the_names(estate: Estate) -> None:
    before = estate.owner.admin.roles()

    assert estate.owner.admin.install(roles=True) == []

    assert estate.owner.admin.roles() == before == {duty: estate.role(duty) for duty in DUTIES}


def test_what_was_granted_is_repaired_by_installing_again(own_estate: Estate) -> None:
    own_estate.run("revoke all on pgqrs.q_jobs from {}", own_estate.role("producer"))
    producer = own_estate.client(own_estate.url("producer")).producer
    with pytest.raises(NotPermitted):
        producer.enqueue("jobs", 1)

    own_estate.owner.admin.install(roles=True)

    assert producer.enqueue("jobs", 1)


def test_other_names_than_before_are_refused(estate: Estate) -> None:
    with pytest.raises(InvalidArgument, match=estate.prefix):
        estate.owner.admin.install(roles=True, role_prefix="other")


def test_a_prefix_without_roles_is_refused(estate: Estate) -> None:
    with pytest.raises(InvalidArgument, match="role_prefix"):
        estate.owner.admin.install(role_prefix="other")


@pytest.mark.parametrize("prefix", ["", "pg_x", "x" * 60, "nul\0", "\ud800"])
def test_names_that_postgresql_would_not_take_are_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgument, match="role_prefix"):
        roles.role_names("pgqrs", prefix)


@pytest.mark.parametrize("prefix", ['a"b', "a'; drop role x; --", "%s{schema}", "Größe"])
def test_odd_prefixes_are_names_and_nothing_more(prefix: str, pgqrs_dsn: str) -> None:
    estate = Estate(pgqrs_dsn, duties=())
    estate.owner.admin.uninstall(roles=True)
    odd = f"{estate.prefix}{prefix}"
    try:
        estate.owner.admin.install(roles=True, role_prefix=odd)
        assert estate.owner.admin.roles()["producer"] == f"{odd}_producer"
    finally:
        estate.owner.admin.uninstall(roles=True)
        estate.close()


def test_a_role_that_is_more_than_a_group_is_not_used(pgqrs_dsn: str) -> None:
    estate = Estate(pgqrs_dsn, duties=())
    estate.owner.admin.uninstall(roles=True)
    estate.login(estate.role("consumer"))
    try:
        with pytest.raises(InvalidArgument, match="more than a group"):
            estate.owner.admin.install(roles=True, role_prefix=estate.prefix)
        assert names_in(estate) == [(estate.role("consumer"),)]
    finally:
        estate.close()


class TestWithoutSuperuser:
    """The owner of a database, as managed services give him to their customers."""

    @pytest.fixture
    def land(self, pgqrs_dsn: str) -> Any:
        estate = Estate(pgqrs_dsn, duties=())
        estate.owner.admin.uninstall(roles=True)
        yield estate
        estate.close()

    def owner(self, land: Estate, attributes: str = "") -> Any:
        url = land.login(f"{land.prefix}_owner", attributes=attributes)
        database = land.run("select current_database()::text")[0][0]
        land.run("grant create on database {} to {}", database, f"{land.prefix}_owner")
        return land.client(url)

    def test_who_may_create_roles_installs_them_and_works_with_them(self, land: Estate) -> None:
        owner = self.owner(land, "createrole")

        made = owner.admin.install(roles=True, role_prefix=land.prefix)
        owner.admin.create_queue("jobs")
        producer = land.login(f"{land.prefix}_p", grant=land.role("producer"))
        land.client(producer).producer.enqueue("jobs", 1)

        assert [step for step in made if step.startswith("role ")] == [f"role {land.role(duty)}" for duty in DUTIES]
        assert owner.admin.queue_metrics("jobs").ready == 1
        owner.admin.uninstall()

    def test_who_may_not_is_told_what_to_do_and_nothing_stays(self, land: Estate) -> None:
        owner = self.owner(land)

        with pytest.raises(NotPermitted, match="CREATEROLE") as caught:
            owner.admin.install(roles=True, role_prefix=land.prefix)

        assert land.role("producer") in str(caught.value)
        assert names_in(land) == []
        assert land.run("select nspname from pg_namespace where nspname = 'pgqrs'") == []

    def test_roles_that_an_administrator_made_before_are_used(self, land: Estate) -> None:
        owner = self.owner(land)
        for duty in DUTIES:
            land.run("create role {} nologin", land.role(duty))
        land.run("grant {} to {}", land.role("admin"), f"{land.prefix}_owner")

        owner.admin.install(roles=True, role_prefix=land.prefix)
        owner.admin.create_queue("jobs")

        assert owner.admin.roles()["observer"] == land.role("observer")


def test_the_asynchronous_client_makes_roles_and_is_refused_alike(pgqrs_dsn: str) -> None:
    estate = Estate(pgqrs_dsn)

    async def scene() -> None:
        async with AsyncClient(Config.load(url=pgqrs_dsn, env={})) as owner:
            assert (await owner.admin.roles())["admin"] == estate.role("admin")
            assert await owner.admin.install(roles=True) == []
        async with AsyncClient(Config.load(url=estate.url("producer"), env={})) as producer:
            await producer.producer.enqueue("jobs", 1)
            with pytest.raises(NotPermitted, match=r"grant pgqrs_t\w+_consumer to "):
                await producer.consumer.read("jobs")
            async with await psycopg.AsyncConnection.connect(estate.url("observer")) as connection:
                with pytest.raises(NotPermitted, match=r"grant pgqrs_t\w+_producer to "):
                    await producer.producer.enqueue("jobs", 1, connection=connection)

    try:
        asyncio.run(scene())
    finally:
        estate.close()


class TestCommand:
    @pytest.fixture
    def shell(
        self, pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> Callable[..., tuple[int, str, str]]:
        monkeypatch.setenv("DATABASE_URL", pgqrs_dsn)

        def execute(*words: str) -> tuple[int, str, str]:
            return run(words), *capfd.readouterr()

        return execute

    def test_roles_are_made_named_and_dropped(self, shell: Callable[..., tuple[int, str, str]]) -> None:
        prefix = f"pgqrs_t{uuid.uuid4().hex[:8]}"
        try:
            code, out, _ = shell("install", "--roles", "--role-prefix", prefix, "--json")
            assert code == 0
            assert json.loads(out)["roles"] == {duty: f"{prefix}_{duty}" for duty in DUTIES}
            assert f"role {prefix}_admin" in json.loads(out)["applied"]
            assert "up to date" in shell("install", "--roles")[1]
        finally:
            code, _, _ = shell("uninstall", "--roles", "--yes")
        assert code == 0

    def test_who_lacks_a_right_is_told_in_one_line(
        self, estate: Estate, shell: Callable[..., tuple[int, str, str]]
    ) -> None:
        code, _, err = shell("message", "send", "jobs", "1", "--url", estate.url("observer"))

        assert code == 1
        assert re.fullmatch(r"pgqrs: '\w+' may not do this: .*grant pgqrs_t\w+_producer to .*\n", err)

    def test_the_doctor_serves_an_observer(self, estate: Estate, shell: Callable[..., tuple[int, str, str]]) -> None:
        code, out, _ = shell("doctor", "--json", "--url", estate.url("observer"))

        assert code == 0
        assert [one for one in json.loads(out)["findings"] if "may not do this" in one["summary"]] == []

    def test_the_doctor_says_which_role_is_missing(
        self, estate: Estate, shell: Callable[..., tuple[int, str, str]]
    ) -> None:
        code, out, _ = shell("doctor", "--json", "--url", estate.login(f"{estate.prefix}_stranger"))

        assert code == 1
        assert f"grant {estate.role('producer')} to" in out


class TestTakingOver:
    """Roles for an installation that works already, as a role that owns its tables."""

    @pytest.fixture
    def land(self, pgqrs_dsn: str) -> Any:
        estate = Estate(pgqrs_dsn, duties=())
        estate.owner.admin.uninstall(roles=True)
        yield estate
        estate.close()

    def app(self, land: Estate, attributes: str = "") -> Any:
        """A program that owns what it uses."""
        name = f"{land.prefix}_app"
        url = land.login(name, attributes=attributes)
        land.run("grant create on database {} to {}", land.run("select current_database()::text")[0][0], name)
        client = land.client(url)
        client.admin.install()
        client.admin.create_queue("jobs")
        client.producer.enqueue("jobs", 1)
        return client

    def test_the_owner_works_on_while_and_after_its_tables_are_handed_over(self, land: Estate) -> None:
        app = self.app(land)
        reader = land.client(land.login(f"{land.prefix}_web", grant=f"{land.prefix}_app"))

        done = land.owner.admin.install(roles=True, role_prefix=land.prefix)

        assert f"member of {land.role('admin')}: {land.prefix}_app" in done
        assert f"owner of pgqrs.q_jobs: {land.role('admin')}" in done
        for client in (app, reader):
            client.producer.enqueue("jobs", 2)
            client.consumer.dequeue(client.consumer.read("jobs"))
            assert client.admin.maintain().failed == {}
        app.admin.create_queue("later")
        app.admin.delete_queue("jobs")
        assert land.owner.admin.install(roles=True) == []

    def test_an_owner_that_inherits_nothing_works_on_too_or_is_named(self, land: Estate) -> None:
        app = self.app(land, "noinherit")
        number = land.run("select current_setting('server_version_num')::int")[0][0]

        if number >= 160_000:
            land.owner.admin.install(roles=True, role_prefix=land.prefix)
        else:
            with pytest.raises(InvalidArgument, match=f"alter role {land.prefix}_app inherit"):
                land.owner.admin.install(roles=True, role_prefix=land.prefix)

        assert app.consumer.read("jobs") is not None

    def test_the_plan_is_what_happens(self, land: Estate) -> None:
        self.app(land)

        plan = land.owner.admin.plan_roles(land.prefix)
        assert names_in(land) == []
        land.owner.admin.install(roles=True, role_prefix=land.prefix)
        after = land.owner.admin.plan_roles()

        app = f"{land.prefix}_app"
        assert (plan.create, plan.members) == ([land.role(duty) for duty in DUTIES], [app])
        assert {"q_jobs", "a_jobs", "v_jobs", "queues"} <= set(plan.hand_over[app])
        assert (after.create, after.members, after.hand_over) == ([], [], {})

    def test_beside_a_reader_it_gives_up_and_goes_on_when_run_again(
        self, land: Estate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "GIVE_UP", 0.5)
        app = self.app(land)
        with psycopg.connect(land.dsn) as other:
            other.execute("select from pgqrs.a_jobs")
            with pytest.raises(TableLocked, match=r"pgqrs\.a_jobs could not be locked"):
                land.owner.admin.install(roles=True, role_prefix=land.prefix)
            app.producer.enqueue("jobs", 2)

        land.owner.admin.install(roles=True)

        assert land.owner.admin.plan_roles().hand_over == {}

    def test_where_there_are_no_roles_the_owner_is_named(self, land: Estate) -> None:
        self.app(land)
        stranger = land.client(land.login(f"{land.prefix}_stranger"))

        with pytest.raises(NotPermitted, match=f"`grant {land.prefix}_app to {land.prefix}_stranger`"):
            stranger.producer.enqueue("jobs", 1)

    def test_the_command_says_what_it_will_change_and_asks(
        self, land: Estate, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.app(land)
        monkeypatch.setenv("DATABASE_URL", land.dsn)
        words = ("install", "--roles", "--role-prefix", land.prefix)

        refused = run(words), *capfd.readouterr()
        planned = run((*words, "--dry-run", "--json")), *capfd.readouterr()
        told = run((*words, "--dry-run")), *capfd.readouterr()
        assert names_in(land) == []
        done = run((*words, "--yes", "--json")), *capfd.readouterr()

        app = f"{land.prefix}_app"
        assert refused[0] == 2
        assert f"which becomes a member of {land.role('admin')}" in refused[2]
        assert "confirm with --yes" in refused[2]
        assert (planned[0], json.loads(planned[1])["plan"]["members"]) == (0, [app])
        assert f"they belong to {app} now" in told[1]
        assert done[0] == 0
        assert f"member of {land.role('admin')}: {app}" in json.loads(done[1])["applied"]


PAGE: Final = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")


def documented() -> dict[str, frozenset[str]]:
    """Who may do what according to the page."""
    found: dict[str, frozenset[str]] = {}
    for names, *columns in re.findall(
        r"^\| (`[^|]+) \| (yes|–) \| (yes|–) \| (yes|–) \| (yes|–) \|$", PAGE, re.MULTILINE
    ):
        allowed = frozenset(duty for duty, cell in zip(DUTIES, columns, strict=True) if cell == "yes")
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", names), allowed))
    return found


def test_the_page_says_what_is_tried_here() -> None:
    tried = {param.values[0].name: param.values[0].allowed for param in ACTS}

    assert len(documented()) > 25
    assert {name: tried.get(name) for name in documented()} == documented()


class TestRenamedRoles:
    @pytest.mark.parametrize("duty", DUTIES)
    def test_a_role_that_was_renamed_is_named_with_what_to_do(self, duty: str, own_estate: Estate) -> None:
        old, new = own_estate.role(duty), f"{own_estate.prefix}_renamed"
        own_estate.run("alter role {} rename to {}", old, new)
        try:
            with pytest.raises(RoleMissing, match=f"{old!r}.*rename to .*pgqrs install --roles") as caught:
                own_estate.client(own_estate.dsn).admin.create_queue("later")
            noted = re.findall(r"`(update [^`]*)`", str(caught.value))[0].replace("…", new)

            assert (caught.value.schema, caught.value.duty, caught.value.role) == ("pgqrs", duty, old)
            assert own_estate.run("select from pgqrs.queues where name = 'later'") == []
            own_estate.run(noted)
            own_estate.client(own_estate.dsn).admin.create_queue("later")
            assert own_estate.owner.admin.roles()[duty] == new
        finally:
            own_estate.run("alter role {} rename to {}", new, old)

    def test_one_that_was_dropped_is_made_again(self, own_estate: Estate) -> None:
        own_estate.run("drop owned by {}", own_estate.role("observer"))
        own_estate.run("drop role {}", own_estate.role("observer"))
        with pytest.raises(RoleMissing):
            own_estate.owner.admin.create_queue("later")

        assert f"role {own_estate.role('observer')}" in own_estate.owner.admin.install(roles=True)
        own_estate.owner.admin.create_queue("later")


@pytest.mark.parametrize("group", ["pg_monitor", "pg_read_all_stats"])
def test_a_role_that_monitors_servers_is_told_to_become_an_observer(group: str, own_estate: Estate) -> None:
    monitor = own_estate.client(own_estate.login(f"{own_estate.prefix}_monitor", grant=group))

    with pytest.raises(NotPermitted) as caught:
        monitor.admin.list_queues()

    assert f"`grant {own_estate.role('observer')} to " in str(caught.value)
    assert own_estate.role("producer") not in str(caught.value)
