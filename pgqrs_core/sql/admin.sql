-- What administrators do: the schema, queues, figures, dead letters, the archive, housekeeping.

-- name: migration_lock patient
-- One migrator at a time, until its transaction ends. The number is the CRC-32 of "pgqrs".
select pg_advisory_xact_lock(1374528841, hashtext(%(schema)s));

-- name: migration_pause anyone patient
-- No migration runs until this transaction ends; answers with the schema's name. Any number may hold it.
select n.nspname::text, pg_advisory_xact_lock_shared(1374528841, hashtext(n.nspname::text))::text
from (select tableoid from {schema}.migrations limit 1) m
join pg_catalog.pg_class c on c.oid = m.tableoid join pg_catalog.pg_namespace n on n.oid = c.relnamespace;

-- name: namespace_exists anyone glance
-- Asked before creating it: IF NOT EXISTS wants the right to create schemas although there is nothing to create.
select exists (select from pg_catalog.pg_namespace where nspname = %(schema)s);

-- name: create_schema
create schema {schema};

-- name: create_migrations
create table if not exists {schema}.migrations (
  component   text        not null,
  version     int         not null,
  name        text        not null,
  checksum    text        not null,
  safe        boolean     not null,
  applied_at  timestamptz not null default now(),
  primary key (component, version)
);

-- name: applied_migrations anyone glance
select version, checksum, safe from {schema}.migrations where component = %(component)s order by version;

-- name: record_migration
insert into {schema}.migrations (component, version, name, checksum, safe)
values (%(component)s, %(version)s, %(name)s, %(checksum)s, %(safe)s);

-- name: schema_exists anyone glance
select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
               where n.nspname = %(schema)s and c.relname = 'migrations');

-- name: missing_core_tables anyone glance
-- Which of the tables that every queue needs are not there, or have no key: a restore makes keys when all rows are there.
select t.name from unnest('{{migrations,queues,waiters,leaders,idempotency_keys}}'::text[]) t(name)
where not exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                  join pg_catalog.pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
                  where n.nspname = %(schema)s and c.relname = t.name);

-- name: drop_shared patient lock_timeout
-- The keys may be missing: they came later.
drop table if exists {schema}.idempotency_keys;
drop table if exists {schema}.waiters, {schema}.leaders, {schema}.queues, {schema}.migrations;
drop table if exists {schema}.roles;

-- name: schema_is_droppable login
-- Whether it is empty, and ours.
select not exists (select from pg_catalog.pg_class where relnamespace = n.oid) and pg_has_role(n.nspowner, 'usage')
from pg_catalog.pg_namespace n where n.nspname = %(schema)s;

-- name: drop_schema login
drop schema {schema};

-- name: schema_holds_others anyone glance
-- Whether the schema holds anything, and which database this is: asked where it holds none of our tables.
select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
               where n.nspname = %(schema)s), current_database()::text;

-- name: find_queue anyone glance
select queue_id, name, table_suffix, options::text, paused_at, created_at from {schema}.queues where name = %(name)s;

-- name: list_queues anyone
select queue_id, name, table_suffix, options::text, paused_at, created_at from {schema}.queues order by name;

-- name: queue_names anyone glance
select name from {schema}.queues order by name limit 10000;

-- name: insert_queue
-- Nothing comes back when the name is taken.
insert into {schema}.queues (name, table_suffix, options, schema_version)
values (%(name)s, %(suffix)s, %(options)s::json, %(version)s)
on conflict (name) do nothing
returning queue_id, name, table_suffix, options::text, paused_at, created_at;

-- name: alter_queue
update {schema}.queues set options = %(options)s::json where name = %(name)s
returning queue_id, name, table_suffix, options::text, paused_at, created_at;

-- name: lock_queue
-- Serialises changes of one queue; claims and enqueues do not wait for it.
select queue_id, name, table_suffix, options::text, paused_at, created_at
from {schema}.queues where name = %(name)s for update;

-- name: outdated_queues anyone glance
-- Up to `limit` queues whose tables lack steps, by number. They are brought up to date one by one.
select queue_id, name from {schema}.queues
where schema_version < %(version)s and queue_id > %(after)s order by queue_id limit %(limit)s;

-- name: lock_outdated_queue
-- The queue with this number, and how far its tables are; no row if it has gone.
select queue_id, name, table_suffix, options::text, paused_at, created_at, schema_version
from {schema}.queues where queue_id = %(queue_id)s for update;

-- name: existing_tables anyone glance
-- Those of these tables that are there.
select c.relname::text from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = %(schema)s and c.relname = any (%(tables)s::text[]);

-- name: record_version
-- The tables of a queue have had all steps up to this one.
update {schema}.queues set schema_version = greatest(schema_version, %(version)s) where queue_id = %(queue_id)s;

-- name: drop_queue patient lock_timeout
-- What is missing already is none of its business.
drop function if exists {enqueue};
drop view if exists {view};
drop table if exists {queue};

-- name: drop_archive patient lock_timeout
drop table if exists {archive};

-- name: delete_queue
delete from {schema}.queues where queue_id = {queue_id};

-- name: pause_queue
update {schema}.queues set paused_at = coalesce(paused_at, statement_timestamp()) where name = %(name)s returning true;

-- name: resume_queue
update {schema}.queues set paused_at = null where name = %(name)s returning true;

-- name: purge
-- Remove up to `limit` messages that nobody holds: ready and delayed, not the dead.
-- They are locked, so their places are theirs. Joined by the key, a queue whose statistics are of when it was empty would
-- be read once for each message.
with gone as materialized (
  select ctid as place from {queue}
  where lane >= -10 and lease_until <= statement_timestamp()
  order by lane, message_id limit %(limit)s for update skip locked
)
delete from {queue} q where q.ctid = any (array(select place from gone)) returning q.message_id;

-- name: peek consumer
-- What a consumer would see, in its order, without claiming.
select r.* from unnest(%(lanes)s::smallint[]) with ordinality h(lane, place)
cross join lateral (
  select message_id, case when lease_until > statement_timestamp() then 'in flight'
                          when expires_at <= statement_timestamp() then 'expired'
                          when due_at > statement_timestamp() then 'delayed'
                          else 'ready' end,
         priority, attempt, enqueued_at, due_at, expires_at, coalesce(content_type, ''), headers::text, body
  from {queue} where lane = h.lane order by message_id limit %(limit)s
) r
order by h.place, r.message_id
limit %(limit)s;

-- name: metrics observer lock_timeout
-- Counts per lane. Of a lane, `cap` + 1 rows are counted from the front. What lies beyond, up to the last id, is cut into
-- `parts` ranges of ids; of each, up to `sample` rows are counted, and `beyond` tells how many there were, how many of them
-- have expired and how many are due, over how many ids they extend, and how many ids the range has. So a backlog of
-- millions costs as much as one of thousands; operations/metrics.py estimates the rest. What has expired is not ready: no
-- claim takes it. A message that is held is in flight, expired or not. `due` is counted to the end unless there are `many`.
-- Rows that were written by hand may hold anything: ids at the ends of bigint, times without an end.
select {queue_id}::int, h.lane, s.seen, s.held, s.expired, w.beyond,
  d.seen > %(cap)s as many, case when d.seen > %(cap)s then s.due else d.due end as due,
  extract(epoch from statement_timestamp() - case when h.lane >= 0 then coalesce(s.oldest, w.oldest)
                                                  when h.lane >= -10 then coalesce(d.oldest, w.oldest) end)::float8 as oldest,
  case when h.lane between -10 and -1 then
    (select extract(epoch from due_at - statement_timestamp())::float8
     from (select due_at, expires_at from {queue}
           where lane = h.lane and due_at > statement_timestamp() and due_at < 'infinity'
           order by due_at, message_id limit %(cap)s + 1) f
     where expires_at is null or expires_at > due_at order by due_at limit 1) end as next_due
from unnest('{{9,8,7,6,5,4,3,2,1,0,-1,-2,-3,-4,-5,-6,-7,-8,-9,-10,-100}}'::smallint[]) h(lane)
cross join lateral (
  select count(*) as seen, count(*) filter (where r.held) as held,
         count(*) filter (where not r.held and r.expired) as expired,
         count(*) filter (where not r.held and r.is_due and not r.expired) as due,
         min(greatest(least(r.enqueued_at, statement_timestamp()), 'epoch'))
           filter (where not r.held and not r.expired and h.lane >= 0) as oldest,
         max(r.message_id) as reached
  from (select message_id, enqueued_at, lease_until > statement_timestamp() as held,
               coalesce(due_at <= statement_timestamp(), true) as is_due,
               coalesce(expires_at <= statement_timestamp(), false) as expired
        from {queue} where lane = h.lane order by message_id limit %(cap)s + 1) r
) s
cross join lateral (
  select count(*) as seen, count(*) filter (where not r.expired) as due,
         min(greatest(r.due_at, 'epoch')) filter (where not r.expired) as oldest
  from (select due_at, coalesce(expires_at <= statement_timestamp(), false) as expired
        from {queue} where h.lane between -10 and -1 and lane = h.lane and due_at <= statement_timestamp()
          and lease_until <= statement_timestamp() order by due_at, message_id limit %(cap)s + 1) r
) d
cross join lateral (
  select array_agg(array[r.seen, coalesce(r.reached, b.upto) - b.since + 1, b.upto - b.since + 1, r.expired, r.due]
                   order by part) as beyond,
         min(r.oldest) as oldest
  from (select message_id as last from {queue}
        where s.seen > %(cap)s and lane = h.lane and message_id > s.reached order by message_id desc limit 1) e
  cross join generate_series(0, %(parts)s::int - 1) part
  cross join lateral (
    select (s.reached + 1 + div((e.last::numeric - s.reached) * part, %(parts)s::int))::bigint as since,
           (s.reached + div((e.last::numeric - s.reached) * (part + 1), %(parts)s::int))::bigint as upto) b
  cross join lateral (
    select count(*) as seen, count(*) filter (where r.free and r.expired) as expired,
           count(*) filter (where r.free and r.is_due and not r.expired) as due,
           min(greatest(least(r.since, statement_timestamp()), 'epoch'))
             filter (where r.free and r.is_due and not r.expired) as oldest,
           case when count(*) = %(sample)s then max(message_id) end as reached
    from (select message_id, lease_until <= statement_timestamp() as free, coalesce(due_at, enqueued_at) as since,
                 coalesce(due_at <= statement_timestamp(), true) as is_due,
                 coalesce(expires_at <= statement_timestamp(), false) as expired
          from {queue} where lane = h.lane and message_id >= b.since and message_id <= b.upto
          order by message_id limit %(sample)s) r) r
  where b.upto >= b.since
) w
where s.seen > 0;

-- name: archive_metrics observer lock_timeout
-- How many there are, counted and sampled as a lane is.
select {queue_id}::int, s.seen,
  case when s.seen > %(cap)s then (
    select array_agg(array[w.seen, coalesce(w.reached, b.upto) - b.since + 1, b.upto - b.since + 1] order by part)
    from (select message_id as last from {archive} where message_id > s.reached order by message_id desc limit 1) e
    cross join generate_series(0, %(parts)s::int - 1) part
    cross join lateral (
      select (s.reached + 1 + div((e.last::numeric - s.reached) * part, %(parts)s::int))::bigint as since,
             (s.reached + div((e.last::numeric - s.reached) * (part + 1), %(parts)s::int))::bigint as upto) b
    cross join lateral (
      select count(*) as seen, case when count(*) = %(sample)s then max(message_id) end as reached
      from (select message_id from {archive} where message_id >= b.since and message_id <= b.upto
            order by message_id limit %(sample)s) r) w
    where b.upto >= b.since
  ) end as beyond
from (select count(*) as seen, max(r.message_id) as reached
      from (select message_id from {archive} order by message_id limit %(cap)s + 1) r) s;

-- name: show_message consumer
-- One message, whatever its state, with the state that a person would give it.
select message_id, case when lane = -100 then 'dead'
                        when lease_until > statement_timestamp() then 'in flight'
                        when expires_at <= statement_timestamp() then 'expired'
                        when due_at > statement_timestamp() then 'delayed'
                        else 'ready' end,
       priority, attempt, enqueued_at, due_at, expires_at, nullif(lease_until, 'epoch'), coalesce(content_type, ''),
       headers::text, last_error::text, body
from {queue} where lane = any(%(lanes)s::smallint[]) and message_id = %(id)s limit 1;

-- name: delete_messages consumer
-- Remove messages, whatever their state, but those that a consumer holds only if told to; answers with those.
delete from {queue}
where lane = any(%(lanes)s::smallint[]) and message_id = any(%(ids)s::bigint[])
  and (%(held)s::boolean or lease_until <= statement_timestamp())
returning message_id;

-- name: find_messages consumer
-- Which of these messages are there.
select message_id from {queue} where lane = any(%(lanes)s::smallint[]) and message_id = any(%(ids)s::bigint[]);

-- name: list_dead consumer
-- The most recently dead first.
select message_id, priority, attempt, enqueued_at, due_at, coalesce(content_type, ''), headers::text,
       last_error::text, body
from {queue} where lane = -100 and due_at <= coalesce(%(before)s::timestamptz - interval '1 microsecond', 'infinity')
order by lane desc, due_at desc, message_id desc limit %(limit)s;

-- name: show_dead consumer
select message_id, priority, attempt, enqueued_at, coalesce(due_at, enqueued_at), coalesce(content_type, ''), headers::text,
       last_error::text, body
from {queue} where lane = -100 and message_id = %(id)s;

-- name: replay_dead consumer
-- Put dead messages back as if new, at once and without their time to live, by their old priority; not those that have a twin
-- there, see `renumber_free`.
with dead as materialized (
  select r.place from unnest(%(ids)s::bigint[]) a(message_id)
  cross join lateral (
    select ctid as place from {queue} where lane = -100 and message_id = a.message_id for update skip locked) r
)
update {queue} q
set lane = -1 - greatest(least(q.priority, 9), 0), due_at = statement_timestamp(), attempt = 0, expires_at = null,
    lease_until = 'epoch', lease_token = 0
where q.ctid = any (array(select place from dead))
  and (select true from {queue} t where t.lane = -1 - q.priority and t.message_id = q.message_id limit 1) is null
returning q.message_id;

-- name: dead_ids
-- Candidates for replaying or purging everything, oldest id first, page by page.
select message_id from {queue} where lane = -100 and message_id > %(after)s order by message_id limit %(limit)s;

-- name: purge_dead
with dead as materialized (
  select r.place from unnest(%(ids)s::bigint[]) a(message_id)
  cross join lateral (
    select ctid as place from {queue} where lane = -100 and message_id = a.message_id for update skip locked) r
)
delete from {queue} q where q.ctid = any (array(select place from dead)) returning q.message_id;

-- name: list_archive
-- The newest id first.
select message_id, attempt, enqueued_at, archived_at, coalesce(content_type, ''), headers::text, body
from {archive} where message_id < coalesce(%(before)s::bigint, 9223372036854775807)
order by message_id desc limit %(limit)s;

-- name: replay_archive
-- Move archived messages back into the queue as new messages with new ids; answers with those.
with gone as (
  delete from {archive} a where a.message_id = any (%(ids)s::bigint[])
  returning a.message_id, a.priority, a.content_type, a.headers, a.body
)
insert into {queue} (lane, priority, content_type, headers, body)
select greatest(least(priority, 9), 0), greatest(least(priority, 9), 0), content_type, headers, body from gone
returning message_id;

-- name: prune_archive consumer bitmap lock_timeout
-- Remove up to `limit` messages archived more than `seconds` ago.
with old as materialized (
  select ctid as place from {archive}
  where archived_at < statement_timestamp() - %(seconds)s::float8 * interval '1 second' limit %(limit)s
)
delete from {archive} a where a.ctid = any (array(select place from old)) returning a.message_id;

-- name: expire consumer lock_timeout
-- Remove up to `limit` messages whose time to live has run out and that nobody holds; not the dead. An adapter may keep
-- those of a queue, to pass them on.
with gone as materialized (
  select ctid as place from {queue}
  where expires_at <= statement_timestamp() and lease_until <= statement_timestamp() and lane >= -10
    and not exists (select from {schema}.queues k where k.queue_id = {queue_id} and k.options ->> 'keep_expired' = 'true')
  order by expires_at limit %(limit)s for update skip locked
)
delete from {queue} q where q.ctid = any (array(select place from gone)) returning q.message_id;

-- name: prune_dead consumer lock_timeout
-- Remove up to `limit` messages that died more than `seconds` ago.
with old as materialized (
  select ctid as place from {queue}
  where lane = -100 and due_at < statement_timestamp() - %(seconds)s::float8 * interval '1 second'
  order by due_at, message_id limit %(limit)s for update skip locked
)
delete from {queue} q where q.ctid = any (array(select place from old)) returning q.message_id;

-- name: prune_keys consumer
-- Remove up to `limit` idempotency keys that are kept no longer, those of deleted queues among them.
with old as materialized (
  select ctid as place from {schema}.idempotency_keys
  where expires_at <= statement_timestamp() order by expires_at limit %(limit)s for update skip locked
)
delete from {schema}.idempotency_keys k where k.ctid = any (array(select place from old)) returning 1;

-- name: elect consumer relaxed
-- Become, or stay, the one process that has a role, such as maintenance; no row when another is. A term that ends later
-- than any that pgqrs gives was written by hand, and counts for nothing.
insert into {schema}.leaders as l (role, holder, host, pid, until)
values (%(role)s, %(holder)s, %(host)s, %(pid)s, statement_timestamp() + %(seconds)s::float8 * interval '1 second')
on conflict (role) do update
set holder = excluded.holder, host = excluded.host, pid = excluded.pid, until = excluded.until
where l.until <= statement_timestamp() or l.until > statement_timestamp() + interval '30 days' or l.holder = excluded.holder
returning holder;

-- name: resign consumer relaxed
delete from {schema}.leaders where role = %(role)s and holder = %(holder)s;

-- name: forget_waiters consumer relaxed
-- Rows of processes that died without saying so.
delete from {schema}.waiters where until < statement_timestamp() - interval '1 hour';

-- name: dead_tuples consumer
-- How much there is to vacuum; nothing where we may not.
select coalesce(s.n_dead_tup, 0) from pg_catalog.pg_stat_all_tables s join pg_catalog.pg_class c on c.oid = s.relid
where s.schemaname = %(schema)s and s.relname = %(table)s
  and case when current_setting('server_version_num')::int >= 170000 then has_table_privilege(c.oid, 'maintain')
           else pg_has_role(c.relowner, 'usage') end;

-- name: vacuum consumer patient alone
vacuum (skip_locked, truncate off) {queue};
