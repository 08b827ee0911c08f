-- Queues with a dead-letter exchange or a greatest length: which they are, what has fallen out of them, and moving it.

-- name: with_rules anyone glance
-- The durable queues that have either, with their arguments. JSON with a NUL cannot be looked into, and would fail for all.
select name, arguments::text from {schema}.kombu_queues
where not ephemeral and case when strpos(arguments::text, '\u0000') > 0 then false else
  arguments ->> 'x-dead-letter-exchange' is not null or arguments ->> 'x-max-length' is not null end
order by name;

-- name: is_expired_kept anyone
-- A row if a queue's expired messages are kept, or are not, as wanted.
select true from {schema}.queues where name = %(name)s and coalesce(options ->> 'keep_expired', 'false') = %(keep)s::boolean::text;

-- name: keep_expired
-- Tell the housekeeping whether the expired messages of a queue are to be kept for their dead-letter exchange.
update {schema}.queues set options = (options::jsonb || jsonb_build_object('keep_expired', %(keep)s::boolean))::json
where name = %(name)s and coalesce(options ->> 'keep_expired', 'false') <> %(keep)s::boolean::text
returning 1;

-- name: fallen consumer brief
-- Up to n messages that have expired and n that died in the last seconds, the oldest of each first; not those that no queue
-- would have, which stay and may be many.
(select lane, message_id, attempt, priority, enqueued_at, coalesce(content_type, ''), headers::text, body,
        null as error
 from {queue}
 where expires_at <= statement_timestamp() and lease_until <= statement_timestamp() and lane >= -10
 order by expires_at limit %(limit)s)
union all
(select lane, message_id, attempt, priority, enqueued_at, coalesce(content_type, ''), headers::text, body,
        coalesce(last_error ->> 'type', '') as error
 from {queue}
 where lane = -100 and due_at >= statement_timestamp() - %(seconds)s::float8 * interval '1 second'
   and coalesce(last_error ->> 'type', '') <> 'Unroutable'
 order by lane, due_at, message_id limit %(limit)s);

-- name: take_out consumer brief
-- Remove messages that nobody holds; answers with those. Another process may have been quicker.
with free as materialized (
  select r.place from unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) a(lane, message_id)
  cross join lateral (
    select ctid as place from {queue}
    where lane = a.lane and message_id = a.message_id and lease_until <= statement_timestamp() for update skip locked) r
)
delete from {queue} q where q.ctid = any (array(select place from free))
returning q.message_id;

-- name: put_aside consumer brief
-- Dead-letter messages that no consumer holds, but for one whose id a dead letter has already. Answers with their ids.
with free as materialized (
  select r.place from unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) a(lane, message_id)
  cross join lateral (
    select ctid as place from {queue}
    where lane = a.lane and message_id = a.message_id and lease_until <= statement_timestamp() for update skip locked) r
)
update {queue} q
set lane = -100, due_at = statement_timestamp(), lease_until = 'epoch', lease_token = 0, last_error = %(error)s::json
where q.ctid = any (array(select place from free))
  and (select true from {queue} t
       where t.lane = -100 and t.message_id = q.message_id and t.ctid <> q.ctid limit 1) is null
returning q.message_id;

-- name: beyond_length consumer brief
-- The oldest messages that are ready, as many as there are beyond the length; at most n.
with ready as materialized (
  select lane, message_id from {queue}
  where lane between -10 and 9 and lease_until <= statement_timestamp()
    and (due_at is null or due_at <= statement_timestamp())
    and (expires_at is null or expires_at > statement_timestamp())
)
select lane, message_id from ready
order by message_id
limit least(greatest((select count(*) from ready) - %(length)s::bigint, 0), %(limit)s::bigint);
