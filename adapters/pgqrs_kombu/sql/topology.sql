-- Exchanges, queues and bindings. Whoever changes bindings notifies with the number 0 in the same transaction.

-- name: migrated anyone
-- The versions of this component that are installed; none also when nothing is.
select version from {schema}.migrations where component = 'kombu';

-- name: declare_exchange consumer
-- Answers with what is there now, whoever declared it.
with made as (
  insert into {schema}.kombu_exchanges (name, type, durable, auto_delete, arguments)
  values (%(name)s, %(type)s, %(durable)s, %(auto_delete)s, %(arguments)s::json)
  on conflict do nothing
  returning type, durable, auto_delete
)
select type, durable, auto_delete from made
union all select type, durable, auto_delete from {schema}.kombu_exchanges where name = %(name)s limit 1;

-- name: find_exchange anyone
-- What an exchange was declared with.
select type, durable, auto_delete from {schema}.kombu_exchanges where name = %(name)s;

-- name: exchange_names anyone
-- For the command: every declared exchange.
select name from {schema}.kombu_exchanges order by name;

-- name: delete_exchange consumer
-- With its bindings. With if_unused, only when it has none.
with gone as (
  delete from {schema}.kombu_exchanges
  where name = %(name)s
    and not (%(if_unused)s and exists (select from {schema}.kombu_bindings where exchange = %(name)s))
  returning name
), unbound as (
  delete from {schema}.kombu_bindings where exchange = %(name)s and exists (select from gone) returning queue_id
)
select (select count(*) from gone), (select count(*) from unbound);

-- name: declare_queue consumer
-- Make a queue or take it over: the last declaration counts. Answers with its number, and with whether it was and is
-- ephemeral, which a declaration cannot change.
insert into {schema}.kombu_queues as q
  (name, ephemeral, exclusive, auto_delete, owner, arguments, message_ttl, expires)
values (%(name)s, %(ephemeral)s, %(exclusive)s, %(auto_delete)s, %(owner)s, %(arguments)s::json,
        %(message_ttl)s::float8, %(expires)s::float8)
on conflict (name) do update set
  exclusive = excluded.exclusive, auto_delete = excluded.auto_delete, owner = excluded.owner,
  arguments = excluded.arguments, message_ttl = excluded.message_ttl, expires = excluded.expires,
  used_at = statement_timestamp()
returning q.queue_id, q.ephemeral;

-- name: find_declared anyone
-- What a queue was declared with; its name is known while it exists.
select queue_id, ephemeral, message_ttl, arguments::text from {schema}.kombu_queues where name = %(name)s;

-- name: consumer_count consumer
-- How many other processes that live consume from an ephemeral queue. A process that listens holds a lock on its number
-- (see wakeups.py): one whose lock is free has died. One that cannot listen, behind a pooler for example, has a number below
-- zero and holds none; it counts until its time is up.
select count(*) from {schema}.kombu_consumers
where queue_id = %(queue_id)s and until > statement_timestamp() and consumer <> %(consumer)s
  and (consumer < 0 or not pg_try_advisory_xact_lock(consumer));

-- name: is_bound anyone
-- A row if exactly this binding is there: then there is nothing to write.
select true
from {schema}.kombu_bindings b
where b.exchange = %(exchange)s and b.routing_key = %(routing_key)s
  and b.queue_id = (select queue_id from {schema}.kombu_queues where name = %(queue)s)
  and b.pattern is not distinct from
    (select %(pattern)s::text from {schema}.kombu_exchanges where name = %(exchange)s and type = 'topic')
  and exists (select from {schema}.kombu_exchanges where name = %(exchange)s)
  and b.arguments::text is not distinct from %(arguments)s::text;

-- name: bind consumer
-- Bind a declared queue; the number 0 rings. Answers with the exchange's type, null when there is no such exchange.
with exchange as (
  select name, type from {schema}.kombu_exchanges where name = %(exchange)s
), bound as (
  insert into {schema}.kombu_bindings (exchange, routing_key, queue_id, pattern, arguments)
  select e.name, %(routing_key)s, q.queue_id, case when e.type = 'topic' then %(pattern)s::text end, %(arguments)s::json
  from exchange e, {schema}.kombu_queues q where q.name = %(queue)s
  on conflict (exchange, routing_key, queue_id) do update
    set pattern = excluded.pattern, arguments = excluded.arguments
  returning queue_id
)
select (select type from exchange), count(b.queue_id), count(pg_notify(%(channel)s, '0')::text) from bound b;

-- name: unbind consumer
-- Take one binding back; an exchange declared with auto_delete goes with its last one.
with gone as (
  delete from {schema}.kombu_bindings b
  where b.exchange = %(exchange)s and b.routing_key = %(routing_key)s
    and b.queue_id = (select queue_id from {schema}.kombu_queues where name = %(queue)s)
  returning b.queue_id
), left_over as (
  delete from {schema}.kombu_exchanges e using gone
  where e.name = %(exchange)s and e.auto_delete
    and not exists (select from {schema}.kombu_bindings b
                    where b.exchange = e.name and (b.queue_id, b.routing_key) <> (gone.queue_id, %(routing_key)s))
  returning e.name
)
select count(*), count(pg_notify(%(channel)s, '0')::text), (select count(*) from left_over) from gone;

-- name: forget_queue consumer
-- Remove a declaration with its bindings, and an ephemeral queue's messages. With an owner, only what is its own; with
-- if_unused, only when nobody else uses it.
with gone as (
  delete from {schema}.kombu_queues q
  where q.name = any(%(names)s::text[])
    and (%(owner)s::bigint is null or q.owner = %(owner)s)
    and not (%(if_unused)s and exists (select from {schema}.kombu_consumers c
                                       where c.queue_id = q.queue_id and c.until > statement_timestamp()))
  returning q.queue_id, q.ephemeral
), emptied as (
  delete from {schema}.kombu_mail where queue_id = any (array(select queue_id from gone)) returning queue_id
), freed as (
  delete from {schema}.kombu_consumers where queue_id = any (array(select queue_id from gone)) returning queue_id
)
select g.queue_id, g.ephemeral, (select count(*) from emptied), (select count(*) from freed), pg_notify(%(channel)s, '0')
from gone g;

-- name: auto_delete consumer
-- The name of a queue that goes with its last consumer, if there is none now.
select name from {schema}.kombu_queues q
where q.queue_id = %(queue_id)s and q.auto_delete
  and not exists (select from {schema}.kombu_consumers c
                  where c.queue_id = q.queue_id and c.until > statement_timestamp());

-- name: list_bindings anyone
-- For `celery list bindings`: each queue, its exchange and routing key.
select q.name, b.exchange, b.routing_key
from {schema}.kombu_bindings b join {schema}.kombu_queues q on q.queue_id = b.queue_id
order by b.exchange, q.name, b.routing_key;

-- name: exchange_table anyone glance
-- The type of an exchange and what is bound to it: of durable queues each binding, of ephemeral ones that there are some.
select e.type, b.routing_key, b.pattern, q.name, q.ephemeral, q.message_ttl, q.arguments::text
from {schema}.kombu_exchanges e
left join {schema}.kombu_bindings b on b.exchange = %(name)s
left join lateral (
  select name, ephemeral, message_ttl, arguments from {schema}.kombu_queues where queue_id = b.queue_id limit 1) q on true
where e.name = %(name)s;

-- name: keep consumer relaxed
-- What every process does now and then: say that it lives, and sweep. Answers with those of its queues that still exist.
-- Sweeping is batched, and left to whoever holds the lock; the number is the CRC-32 of "pgqrs kombu".
with alive as (
  insert into {schema}.kombu_consumers as c (queue_id, consumer, until)
  select q.queue_id, %(consumer)s, statement_timestamp() + %(seconds)s::float8 * interval '1 second'
  from {schema}.kombu_queues q where q.queue_id = any(%(queue_ids)s::int[])
  on conflict (queue_id, consumer) do update set until = excluded.until
  returning c.queue_id
), turn as materialized (
  select pg_try_advisory_xact_lock(1985112867, hashtext(%(schema)s)) as ours
), deserted as materialized (
  select q.queue_id from {schema}.kombu_queues q
  where (select ours from turn) and q.ephemeral and not q.queue_id = any(%(queue_ids)s::int[])
    and greatest(q.used_at, (select max(c.until) from {schema}.kombu_consumers c where c.queue_id = q.queue_id))
        < statement_timestamp() - q.expires * interval '1 second'
  limit 100 for update skip locked
), gone as (
  delete from {schema}.kombu_queues where queue_id = any (array(select queue_id from deserted)) returning queue_id
), forgotten as (
  delete from {schema}.kombu_consumers where queue_id = any (array(select queue_id from gone)) returning queue_id
), stale as materialized (
  select ctid as place from {schema}.kombu_mail m
  where (select ours from turn) and m.expires_at < statement_timestamp() limit 1000 for update skip locked
), expired as (
  delete from {schema}.kombu_mail m where m.ctid = any (array(select place from stale)) returning m.queue_id
)
select a.queue_id, (select count(*) from gone), (select count(*) from forgotten), (select count(*) from expired)
from alive a
union all
select null, count(*), (select count(*) from forgotten), (select count(*) from expired) from gone;

-- name: sweep_orphans consumer
-- Mail of queues that are gone: written while its queue was being deleted.
with orphans as materialized (
  select ctid as place from {schema}.kombu_mail m
  where not exists (select from {schema}.kombu_queues q where q.queue_id = m.queue_id offset 0)
    and m.enqueued_at < statement_timestamp() - interval '10 seconds'
  limit 1000 for update skip locked
)
delete from {schema}.kombu_mail m where m.ctid = any (array(select place from orphans)) returning m.queue_id;

-- name: leave consumer relaxed
-- This process uses these queues no more.
with gone as (
  delete from {schema}.kombu_consumers
  where consumer = %(consumer)s and queue_id = any(%(queue_ids)s::int[]) returning queue_id
)
update {schema}.kombu_queues set used_at = statement_timestamp() where queue_id = any (array(select queue_id from gone));

-- name: topology_probe anyone
-- The number 0 stands for the bindings: their changes ring; there is nothing to claim.
select 0::int as queue_id, false as claimable, null::float8 as next_due, null::bigint as first, null::float8 as age;
