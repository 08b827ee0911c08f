-- Results: storing, reading, waiting. The commit of a result need not wait for the disk: the ack of its message comes after
-- it, and takes it along.

-- name: store_result consumer relaxed
-- Store a result and notify those who wait for it, if anybody does.
with stored as (
  insert into {schema}.dramatiq_results (key, result, expires_at)
  values (%(key)s, %(result)s, statement_timestamp() + %(ttl)s::float8 * interval '1 second')
  on conflict (key) do update set result = excluded.result, expires_at = excluded.expires_at
  returning key
)
select pg_notify(%(channel)s, w.listener::text)
from stored s join {schema}.dramatiq_waiters w on w.key = s.key
where w.until > statement_timestamp();

-- name: read_results producer
-- Those of `keys` that are there, in no order.
select r.key, r.result
from unnest(%(keys)s::text[]) wanted(key) join {schema}.dramatiq_results r on r.key = wanted.key
where r.expires_at > statement_timestamp();

-- name: await producer relaxed
-- Ask to be told of `keys` for the next `seconds`. What is being stored at this moment may miss it, so whoever waits reads
-- again afterwards.
insert into {schema}.dramatiq_waiters as w (key, listener, until)
select wanted.key, %(listener)s, statement_timestamp() + %(seconds)s::float8 * interval '1 second'
from unnest(%(keys)s::text[]) wanted(key)
on conflict (key, listener) do update set until = excluded.until
  where w.until < excluded.until - interval '60 seconds';

-- name: await_no_more producer relaxed
-- Take back what `await` asked for.
delete from {schema}.dramatiq_waiters w using unnest(%(keys)s::text[]) gone(key)
where w.key = gone.key and w.listener = %(listener)s;

-- name: results_probe producer
-- Is a result there that this process waits for? What a lost notification would have said.
select {queue_id}::int as queue_id,
  exists (select from {schema}.dramatiq_waiters w join {schema}.dramatiq_results r on r.key = w.key
          where w.listener = {queue_id} and r.expires_at > statement_timestamp()) as claimable,
  null::float8 as next_due;

-- name: prune_results consumer
-- Remove up to `limit` results that have expired.
with gone as materialized (
  select key from {schema}.dramatiq_results
  where expires_at <= statement_timestamp() order by expires_at limit %(limit)s for update skip locked
)
delete from {schema}.dramatiq_results r using gone where r.key = gone.key returning 1;

-- name: prune_waiters consumer relaxed
-- Rows of processes that died without saying so.
delete from {schema}.dramatiq_waiters where until < statement_timestamp() - interval '1 minute';
