"""A superuser, or another role with more rights than the tables' owner, uses tables that the owner has rigged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from pgqrs_native import AsyncClient, Client
from psycopg import sql

from pgqrs_core.config import Config
from pgqrs_core.drivers import acting
from pgqrs_core.errors import NotPermitted, PgqrsError

from .estate import Estate

WHO: Final = "select session_user::text, current_user::text"

#: What an administrator of pgqrs runs for it to be run by a superuser. ``evil()`` makes him one, if he is let.
RIGGED: Final = {
    "trigger on queues": "create trigger evil before insert on pgqrs.queues for each row execute function apart.evil()",
    "trigger on messages": "create trigger evil before insert on pgqrs.q_jobs for each row execute function apart.evil()",
    "deferred trigger": "create constraint trigger evil after insert on pgqrs.q_jobs deferrable initially deferred "
    "for each row execute function apart.evil()",
    "trigger for each statement": "create trigger evil before delete on pgqrs.waiters execute function apart.evil()",
    "rule": "create rule evil as on insert to pgqrs.q_jobs do also select apart.evil_number()",
    "default": "alter table pgqrs.q_jobs alter priority set default apart.evil_number()",
    "default that sets the role": "alter table pgqrs.q_jobs alter content_type set default "
    "set_config('role', 'none', false)",
    "default that runs a text": "alter table pgqrs.q_jobs alter content_type set default "
    "query_to_xml('select apart.evil_number()', false, false, '')::text",
    "generated column": "alter table pgqrs.waiters add evil int generated always as (apart.evil_number()) stored",
    "check": "alter table pgqrs.q_jobs add constraint evil check (apart.evil_number() > 0) not valid",
    "index": "create index evil on pgqrs.q_jobs ((message_id + apart.evil_number()))",
    "part of an index": "create index evil on pgqrs.q_jobs (message_id) where apart.evil_number() > 5",
    "type": "create domain apart.evil as json check (apart.evil_number() > 0); "
    "drop view pgqrs.v_jobs; "
    "alter table pgqrs.q_jobs alter last_error type apart.evil",
    "view in place of a table": "alter table pgqrs.queues rename to those; "
    "create view pgqrs.queues as select those.*, apart.evil_number() as evil from pgqrs.those",
    "view of a table elsewhere": "create table apart.queues as table pgqrs.queues; "
    "alter table pgqrs.queues rename to those; create view pgqrs.queues as table apart.queues",
    "policy": "alter table pgqrs.queues enable row level security; "
    "create policy evil on pgqrs.queues using (apart.evil_number() > 0)",
    "foreign key": "create table apart.evil (name text references pgqrs.queues (name) on delete cascade)",
    "function in the place of ours": "create function pgqrs.later() returns int language sql return 1",
    "child": "create table apart.evil () inherits (pgqrs.q_jobs)",
}


@pytest.fixture
def rigged(own_estate: Estate) -> Iterator[Estate]:
    """An installation whose administrators can make functions, and a schema beside it."""
    estate = own_estate
    database = estate.run("select current_database()::text")[0][0]
    estate.run("grant create on database {} to {}", database, estate.role("admin"))
    as_admin(estate, "create schema apart")
    body = "begin set local role none; execute 'alter role {} superuser'; return {}; end"
    role = sql.Identifier(estate.role("admin")).as_string(None)
    as_admin(estate, "create function apart.evil() returns trigger language plpgsql as $f$ "
                     f"{body.format(role, 'new')} $f$")  # fmt: skip
    as_admin(estate, "create function apart.evil_number() returns int language plpgsql immutable as $f$ "
                     "begin return 7; end $f$")  # fmt: skip
    yield estate
    assert estate.run("select rolsuper from pg_roles where rolname = {}", sql.Literal(estate.role("admin"))) == [
        (False,)
    ]


def as_admin(estate: Estate, script: str) -> None:
    with psycopg.connect(estate.url("admin"), autocommit=True) as connection:
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(estate.role("admin"))))
        connection.execute(script.encode())


def who(client: Client) -> Any:
    with client.engine.transaction() as connection:
        return connection.execute(WHO).fetchone()


def test_sessions_of_a_superuser_act_as_the_tables_owner(estate: Estate) -> None:
    login = estate.run("select session_user::text")[0][0]

    assert who(estate.owner) == (login, estate.role("admin"))


def test_so_do_those_of_the_asynchronous_client(estate: Estate) -> None:
    async def scene() -> Any:
        async with AsyncClient(Config.load(url=estate.dsn, env={})) as client:
            link = await client.engine.connections.open(relaxed=False)
            async with link.connection:
                return await (await link.connection.execute(WHO)).fetchone()

    assert asyncio.run(scene())[1] == estate.role("admin")


def test_so_do_those_of_a_role_that_was_granted_it(estate: Estate) -> None:
    login, role = who(estate.client(estate.url("admin")))

    assert (login, role) == (f"{estate.prefix}_a_admin", estate.role("admin"))


@pytest.mark.parametrize("duty", ["producer", "consumer", "observer"])
def test_other_roles_act_as_themselves(duty: str, estate: Estate) -> None:
    assert who(estate.client(estate.url(duty))) == (f"{estate.prefix}_a_{duty}",) * 2


def test_roles_that_are_made_are_taken_by_the_sessions_of_the_same_client(pgqrs_dsn: str) -> None:
    estate = Estate(pgqrs_dsn, duties=())
    try:
        estate.owner.admin.uninstall(roles=True)
        estate.owner.admin.install()
        login, role = who(estate.owner)
        assert login == role

        estate.owner.admin.install(roles=True, role_prefix=estate.prefix)
        assert who(estate.owner) == (login, estate.role("admin"))
        assert estate.owner.admin.install(roles=True) == []
        estate.owner.admin.create_queue("later")
        owners = estate.run(
            "select distinct relowner::regrole::text from pg_class where relnamespace = 'pgqrs'::regnamespace"
        )
        assert owners == [(estate.role("admin"),)]

        estate.owner.admin.uninstall(roles=True)
        estate.owner.admin.install()
        assert who(estate.owner) == (login, login)
    finally:
        estate.close()


def test_a_session_that_was_open_before_asks_again(pgqrs_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "_ASK_AGAIN", 0.0)
    estate = Estate(pgqrs_dsn, duties=())
    other = estate.client(pgqrs_dsn)
    try:
        estate.owner.admin.uninstall(roles=True)
        estate.owner.admin.install()
        other.admin.create_queue("jobs")
        login, _ = who(other)
        estate.owner.admin.install(roles=True, role_prefix=estate.prefix)

        assert who(other) == (login, estate.role("admin"))
    finally:
        estate.close()


def test_a_trigger_has_no_more_rights_than_the_owner(own_estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had been planted while a superuser's session was open: the look at its beginning does not find it."""
    monkeypatch.setattr(acting, "_refuse", lambda *_: None)
    as_admin(
        own_estate,
        "create function pgqrs.plain() returns trigger language plpgsql as $f$ begin "
        f"execute 'alter role {own_estate.role('admin')} superuser'; return new; end $f$; "
        "create trigger plain before insert on pgqrs.queues for each row execute function pgqrs.plain(); "
        "create trigger plain before insert on pgqrs.q_jobs for each row execute function pgqrs.plain()",
    )

    for attack in (
        lambda: own_estate.owner.admin.create_queue("later"),
        lambda: own_estate.owner.producer.enqueue("jobs", 1),
    ):
        with pytest.raises(NotPermitted, match=r"alter .*role"):
            attack()
    assert own_estate.run(
        "select rolsuper from pg_roles where rolname = {}", sql.Literal(own_estate.role("admin"))
    ) == [(False,)]


@pytest.mark.parametrize("script", RIGGED.values(), ids=RIGGED)
def test_a_superuser_does_not_use_tables_with_code_of_others(script: str, rigged: Estate) -> None:
    as_admin(rigged, script)
    superuser = rigged.client(rigged.dsn)

    with pytest.raises(NotPermitted, match=rf"(?i)rights of .*granted {rigged.role('admin')} and is no superuser"):
        superuser.admin.create_queue("later")
    for attempt in (
        lambda: superuser.producer.enqueue("jobs", 1),
        lambda: superuser.admin.queue_metrics("jobs"),
        lambda: superuser.admin.install(),
    ):
        with pytest.raises(PgqrsError):
            attempt()


def test_the_asynchronous_client_refuses_it_too(rigged: Estate) -> None:
    as_admin(rigged, RIGGED["trigger on queues"])

    async def scene() -> None:
        async with AsyncClient(Config.load(url=rigged.dsn, env={})) as client:
            await client.admin.list_queues()

    with pytest.raises(NotPermitted, match="trigger evil on queues"):
        asyncio.run(scene())


@pytest.fixture
def noted(own_estate: Estate) -> Any:
    """Which roles wrote to the queue and its row: triggers of a superuser note that."""
    own_estate.run(
        "create table public.noted (role text); grant insert on public.noted to public; "
        "create function public.note() returns trigger language plpgsql as $f$ begin "
        "insert into public.noted values (current_user); return new; end $f$; "
        "create trigger note before insert on pgqrs.q_jobs for each row execute function public.note(); "
        "create trigger note before insert or update on pgqrs.queues for each row execute function public.note()"
    )
    return lambda: own_estate.run("select distinct role from public.noted")


def test_a_trigger_of_a_superusers_own_is_run_with_the_rights_of_the_owner(own_estate: Estate, noted: Any) -> None:
    own_estate.client(own_estate.dsn).producer.enqueue("jobs", 1)

    assert noted() == [(own_estate.role("admin"),)]


def test_behind_a_pooler_each_transaction_acts_as_the_owner(
    own_estate: Estate, noted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqrs_core.drivers.session.BACKEND", "select 0")
    monkeypatch.setattr("pgqrs_core.drivers.session._announced", ["announced"])

    with Client(Config.load(url=own_estate.dsn, env={})) as client:
        assert client.admin.install(roles=True) == []
        client.admin.create_queue("later")
        client.producer.batch_enqueue("jobs", [1, 2])
        client.admin.pause_queue("later")
        client.admin.delete_queue("later")
        link = client.engine.connections.open(relaxed=False)
        with link.connection:
            row = link.connection.execute(WHO).fetchone()

    assert noted() == [(own_estate.role("admin"),)]
    assert row is not None
    assert row[0] == row[1]


def test_an_installation_of_our_own_is_clean(estate: Estate) -> None:
    with psycopg.connect(estate.dsn) as connection:
        assert connection.execute(acting._statement("foreign_code"), {"schema": "pgqrs"}).fetchall() == []


def test_the_doctor_still_sees_what_a_superuser_may_see(estate: Estate) -> None:
    from pgqrs_core.effects import Execute
    from pgqrs_core.sql import queries

    def facts() -> Any:
        return (yield Execute(queries["server_facts"]))

    row = estate.owner.engine.run(facts)[0]

    login, role = who(estate.owner)
    assert (row[4], row[5]) == (True, login)
    assert role == estate.role("admin")
