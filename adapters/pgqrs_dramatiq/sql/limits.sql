-- Counters and events of rate limiters. Each is one statement; on a conflict it sees the latest version of the row, locked,
-- so the sums are exact whoever comes at the same time. What has expired counts as zero, and as absent. Commits need not
-- wait for the disk: an ack that comes after takes them along.

-- name: add_barrier producer relaxed
-- Set the counter of a group's callbacks, which has a random name. No row: it is there, or has expired.
insert into {schema}.dramatiq_new_barriers (key, value, expires_at)
values (%(key)s, %(value)s, statement_timestamp() + %(ttl)s::float8 * interval '1 second')
on conflict do nothing
returning 1;

-- name: add_limit consumer relaxed
-- Set a counter that is not there. Answers with a row if it was not.
insert into {schema}.dramatiq_limits as l (key, value, expires_at)
values (%(key)s, %(value)s, statement_timestamp() + %(ttl)s::float8 * interval '1 second')
on conflict (key) do update set value = excluded.value, expires_at = excluded.expires_at
  where l.expires_at <= statement_timestamp()
returning 1;

-- name: change_limit consumer relaxed
-- Add `amount`, which may be below zero, if the sum stays within the bounds. Answers with a row if it does; otherwise
-- nothing is touched.
insert into {schema}.dramatiq_limits as l (key, value, expires_at)
select %(key)s, %(amount)s::bigint, statement_timestamp() + %(ttl)s::float8 * interval '1 second'
where %(amount)s::bigint between %(minimum)s::bigint and %(maximum)s::bigint
   or exists (select from {schema}.dramatiq_limits where key = %(key)s and expires_at > statement_timestamp())
on conflict (key) do update set
  value = case when l.expires_at > statement_timestamp() then l.value else 0 end + %(amount)s::bigint,
  expires_at = excluded.expires_at
  where case when l.expires_at > statement_timestamp() then l.value else 0 end + %(amount)s::numeric
        between %(minimum)s::bigint and %(maximum)s::bigint
returning 1;

-- name: lock_limits consumer
-- Let one after the other change the sum of several counters; the number is the CRC-32 of "pgqrs dramatiq limits". Locks are
-- taken in the order of their numbers.
select count(pg_advisory_xact_lock(-1800566059, h.number)::text)
from (select distinct hashtext(%(schema)s || ':' || base) as number from unnest(%(bases)s::text[]) b(base) order by 1) h;

-- name: change_limit_of_sum consumer relaxed
-- Add `amount` to a counter unless it, or the sum of all `keys` with it, would exceed `maximum`. Within `lock_limits`.
insert into {schema}.dramatiq_limits as l (key, value, expires_at)
select %(key)s, coalesce(c.value, 0) + %(amount)s::bigint,
       statement_timestamp() + %(ttl)s::float8 * interval '1 second'
from (select (select value from {schema}.dramatiq_limits
              where key = %(key)s and expires_at > statement_timestamp()) as value,
             (select coalesce(sum(value), 0) from {schema}.dramatiq_limits
              where key = any (%(keys)s::text[]) and expires_at > statement_timestamp()) as total) c
where coalesce(c.value, 0) + %(amount)s::numeric <= %(maximum)s::bigint
  and c.total + %(amount)s::bigint <= %(maximum)s::bigint
on conflict (key) do update set value = excluded.value, expires_at = excluded.expires_at
returning 1;

-- name: publish_event consumer relaxed
-- Let an event have happened for `ttl` seconds, and notify those who wait for it.
with stored as (
  insert into {schema}.dramatiq_limits (key, value, expires_at)
  values (%(key)s, 1, statement_timestamp() + %(ttl)s::float8 * interval '1 second')
  on conflict (key) do update set value = 1, expires_at = excluded.expires_at
  returning key
)
select pg_notify(%(channel)s, w.listener::text) from {schema}.dramatiq_waiters w
where w.key = %(key)s and w.until > statement_timestamp() and exists (select from stored)
limit 1000;

-- name: read_events consumer
-- Those of `keys` that have happened, in no order.
select key, value from {schema}.dramatiq_limits
where key = any (%(keys)s::text[]) and expires_at > statement_timestamp();

-- name: events_probe consumer
-- Has an event happened that this process waits for? What a lost notification would have said.
select {queue_id}::int as queue_id,
  exists (select from {schema}.dramatiq_waiters w cross join lateral (
            select from {schema}.dramatiq_limits where key = w.key and expires_at > statement_timestamp() limit 1) l
          where w.listener = {queue_id}) as claimable,
  null::float8 as next_due, null::bigint as first, null::float8 as age;

-- name: prune_limits consumer
-- Remove up to `limit` counters and events that have expired. The table is small: limiters come back to their keys.
with gone as materialized (
  select ctid as place from {schema}.dramatiq_limits
  where expires_at <= statement_timestamp() limit %(limit)s for update skip locked
)
delete from {schema}.dramatiq_limits l where l.ctid = any (array(select place from gone)) returning 1;
