-- What `pgqrs doctor` and `pgqrs top` look at. Nothing here writes or locks. But for the ids at the end, all of it comes from
-- the server's own views, so it costs the same whatever the queues hold.

-- name: server_facts login observer
-- Who answers, and whether it may be written to. The time zone is the server's own: ours is set to UTC.
select current_setting('server_version_num')::int, current_setting('server_version'),
  pg_is_in_recovery() or current_setting('default_transaction_read_only')::boolean,
  (select reset_val from pg_catalog.pg_settings where name = 'TimeZone'),
  pg_has_role(current_user, 'pg_read_all_stats', 'usage'), current_user::text, current_database()::text;

-- name: server_time observer
select extract(epoch from clock_timestamp())::float8;

-- name: server_settings observer
-- As a new session of this role in this database gets them; our own connections change some for themselves.
select name, reset_val from pg_catalog.pg_settings
where name in ('fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'autovacuum', 'track_counts',
               'autovacuum_freeze_max_age', 'max_connections', 'superuser_reserved_connections',
               'reserved_connections');

-- name: synchronous_standbys login observer
-- How many standbys commits may wait for; of others than our own role, only members of pg_monitor see any.
select count(*) from pg_catalog.pg_stat_replication where sync_state in ('sync', 'quorum');

-- name: connection_counts login observer
-- Client connections to the whole server, and those of them that belong to pgqrs.
select count(*), count(*) filter (where application_name = 'pgqrs')
from pg_catalog.pg_stat_activity where backend_type = 'client backend';

-- name: xmin_pins login observer
-- Everything that keeps vacuum from removing dead rows of this database, the oldest first. Of a statement only the
-- first word is read: the rest may quote values.
select * from (
  select 'session', coalesce(usename, '?'), pid, coalesce(application_name, ''), coalesce(state, ''),
    upper(left(substring(query from '^\s*([A-Za-z]+)'), 20)),
    extract(epoch from clock_timestamp() - xact_start)::float8,
    greatest(age(backend_xid), age(backend_xmin)) as held
  from pg_catalog.pg_stat_activity
  where datname = current_database() and pid <> pg_backend_pid()
    and backend_type not in ('autovacuum worker', 'walsender')
    and (backend_xid is not null or backend_xmin is not null)
  union all
  select 'prepared transaction', owner::text, null, gid, 'prepared', null,
    extract(epoch from clock_timestamp() - prepared)::float8, age(transaction)
  from pg_catalog.pg_prepared_xacts where database = current_database()
  union all
  select 'replication slot', '', active_pid, slot_name::text, case when active then 'active' else 'inactive' end,
    null, null, age(xmin)
  from pg_catalog.pg_replication_slots where xmin is not null
  union all
  select 'standby', coalesce(usename, '?'), pid, coalesce(application_name, ''), coalesce(state, ''), null, null,
    age(backend_xmin)
  from pg_catalog.pg_stat_replication where backend_xmin is not null
) pins
order by held desc;

-- name: queue_tables observer
-- Rows written, removed, and dead, per queue table, as the server has counted them; sessions report to it about once
-- a second.
select s.relname::text, s.n_tup_ins, s.n_tup_del, s.n_live_tup, s.n_dead_tup,
  extract(epoch from clock_timestamp() - greatest(s.last_vacuum, s.last_autovacuum))::float8,
  coalesce('autovacuum_enabled=false' = any (c.reloptions), false)
from pg_catalog.pg_stat_all_tables s join pg_catalog.pg_class c on c.oid = s.relid
where s.schemaname = %(schema)s and starts_with(s.relname::text, 'q_');

-- name: transaction_age observer
-- The database that is nearest to the end of its transaction ids, and how many are in use there.
select datname::text, greatest(age(datfrozenxid), mxid_age(datminmxid)) as used
from pg_catalog.pg_database order by used desc limit 1;

-- name: notify_usage observer
-- The part of the notification queue that is in use, from 0 to 1: one stuck listener fills it for all.
select pg_notification_queue_usage();

-- name: leaders observer
-- Which process has which role, and for how many seconds its term still runs.
select role, host, pid,
  extract(epoch from least(until, statement_timestamp() + interval '10 years') - statement_timestamp())::float8
from {schema}.leaders where until > statement_timestamp() order by role;

-- name: sleepers observer
-- How many consumers sleep and have asked to be woken, by queue.
select queue_id, count(*) from {schema}.waiters where until > statement_timestamp() group by queue_id;

-- name: lock_holders login anyone glance
-- Sessions that hold locks on these tables, or where none are named on any of the schema, the longest transaction first. Of
-- a statement only what stands before its first quoted value is read, and no number.
select a.pid, coalesce(a.usename::text, '?'), coalesce(a.application_name, ''), coalesce(a.state, ''),
  a.backend_type = 'autovacuum worker', extract(epoch from clock_timestamp() - a.xact_start)::float8,
  case when has_query then left(regexp_replace(regexp_replace(substring(a.query from '^(?:[^''$]|\$\d)*'), '\m\d+', '…', 'g'),
                                               '\s+', ' ', 'g'), 120) else '' end
from pg_catalog.pg_stat_activity a, lateral (select a.query <> '<insufficient privilege>' as has_query) h
where a.pid <> pg_backend_pid() and (a.xact_start is null or a.xact_start < clock_timestamp() - interval '0.2 seconds')
  and a.pid in (
    select l.pid from pg_catalog.pg_locks l
    where l.granted and l.locktype = 'relation' and l.relation in (
      select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where n.nspname = %(schema)s
        and (cardinality(%(tables)s::text[]) = 0 or c.relname = any (%(tables)s::text[]))))
order by a.xact_start nulls last limit 3;

-- name: highest_ids observer lock_timeout
-- The highest id among a queue's messages, and the last one that its sequence gave; null where there is none. Ids near the end
-- of the type were not given by a sequence.
select {queue_id}::int,
  (select max(r.message_id)
   from unnest('{{9,8,7,6,5,4,3,2,1,0,-1,-2,-3,-4,-5,-6,-7,-8,-9,-10,-100}}'::smallint[]) h(lane) cross join lateral (
     select message_id from {queue} where lane = h.lane and message_id < 4611686018427387904
     order by message_id desc limit 1) r),
  (select last_value from {sequence} where is_called);

-- name: highest_archived observer lock_timeout
-- The highest id in a queue's archive.
select {queue_id}::int,
  (select message_id from {archive} where message_id < 4611686018427387904 order by message_id desc limit 1);

-- name: highest_keyed observer patient
-- Of each queue the highest id that a key stands for: all that is left of messages that are gone. Reads all keys.
select queue_id, max(message_id) from {schema}.idempotency_keys where message_id < 4611686018427387904 group by queue_id;

-- name: queue_numbers observer
-- The highest number of a queue, and the last one that the sequence gave.
select (select max(queue_id) from {schema}.queues),
  (select last_value - (not is_called)::int from {schema}.queues_queue_id_seq);

-- name: unsound observer lock_timeout
-- One message for each rule that no producer may break, and that some older program or an owner has broken: its lane and id.
select {queue_id}::int, r.rule, r.lane, r.message_id from (
  select 'lane' as rule, l.* from (values (-32768, -101), (-99, -11), (10, 32767)) b(low, high) cross join lateral (
    select lane, message_id from {queue} where lane >= b.low and lane <= b.high order by lane, message_id limit 1) l
  union all
  select 'due_at', d.* from unnest('{{-1,-2,-3,-4,-5,-6,-7,-8,-9,-10,-100}}'::smallint[]) h(lane) cross join lateral (
    (select lane, message_id from {queue} where lane = h.lane and due_at >= '10000-01-01Z'
     order by due_at, message_id limit 1)
    union all
    (select lane, message_id from {queue} where lane = h.lane and due_at < '1970-01-01Z'
     order by due_at, message_id limit 1)) d
  union all
  (select 'expires_at', lane, message_id from {queue} where expires_at >= '10000-01-01Z' order by expires_at limit 1)
  union all
  (select 'expires_at', lane, message_id from {queue} where expires_at < '1970-01-01Z' order by expires_at limit 1)
) r;
