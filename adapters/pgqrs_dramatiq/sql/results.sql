-- Results: storing, reading, waiting. The commit of a result need not wait for the disk: the ack of its message comes after
-- it, and takes it along.

-- name: store_result consumer relaxed
-- Store a result and notify the processes that wait for it, a thousand at most.
with stored as (
  insert into {schema}.dramatiq_results (key, result, expires_at)
  values (%(key)s, %(result)s, statement_timestamp() + %(ttl)s::float8 * interval '1 second')
  on conflict (key) do update set result = excluded.result, expires_at = excluded.expires_at
  returning key
)
select pg_notify(%(channel)s, w.listener::text) from {schema}.dramatiq_waiters w
where w.key = %(key)s and w.until > statement_timestamp() and exists (select from stored)
limit 1000;

-- name: read_results producer
-- Those of `keys` that are there, in no order. `is true` keeps the planner from reading all by their expiry.
select key, result from {schema}.dramatiq_results
where key = any (%(keys)s::text[]) and (expires_at > statement_timestamp()) is true;

-- name: await producer relaxed
-- Ask to be told of `keys` for the next `seconds`. What is being stored at this moment may miss it, so whoever waits reads
-- again afterwards.
insert into {schema}.dramatiq_waiters as w (key, listener, until)
select wanted.key, %(listener)s, statement_timestamp() + %(seconds)s::float8 * interval '1 second'
from unnest(%(keys)s::text[]) wanted(key)
on conflict (key, listener) do update set until = excluded.until
  where w.until < excluded.until - interval '60 seconds';

-- name: await_no_more producer relaxed
-- Take back what `await` asked for: an update of this view deletes. Adding 0 keeps the planner from reading all that this
-- listener waits for.
update {schema}.dramatiq_ended_waits set until = null where key = any (%(keys)s::text[]) and listener + 0 = %(listener)s;

-- name: results_probe producer
-- Is a result there that this process waits for? What a lost notification would have said.
select {queue_id}::int as queue_id,
  exists (select from {schema}.dramatiq_waiters w cross join lateral (
            select from {schema}.dramatiq_results
            where key = w.key and (expires_at > statement_timestamp()) is true limit 1) r
          where w.listener = {queue_id}) as claimable,
  null::float8 as next_due, null::bigint as first, null::float8 as age;

-- name: prune_results consumer
-- Remove up to `limit` results that have expired.
with gone as materialized (
  select ctid as place from {schema}.dramatiq_results
  where expires_at <= statement_timestamp() order by expires_at limit %(limit)s for update skip locked
)
delete from {schema}.dramatiq_results r where r.ctid = any (array(select place from gone)) returning 1;

-- name: prune_waiters consumer relaxed
-- Remove up to `limit` rows of processes that died without saying so. One that another session holds stays.
with gone as materialized (
  select ctid as place from {schema}.dramatiq_waiters
  where until < statement_timestamp() - interval '1 minute' limit %(limit)s for update skip locked
)
delete from {schema}.dramatiq_waiters w where w.ctid = any (array(select place from gone)) returning 1;
