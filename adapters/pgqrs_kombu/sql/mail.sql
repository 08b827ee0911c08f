-- The messages of ephemeral queues: a row per recipient, removed when it is taken. All in unlogged tables, on connections
-- that do not wait for the disk, so the NOTIFY in the same transaction holds its lock for no longer than a memory write.

-- name: post producer relaxed
-- Route one message to every ephemeral queue that is bound to the exchange and matches, and wake their consumers.
-- Answers with the exchange's type (null: there is none) and the number of recipients.
with exchange as materialized (
  select type from {schema}.kombu_exchanges where name = %(exchange)s
), stored as (
  insert into {schema}.kombu_mail (queue_id, priority, expires_at, content_type, headers, body)
  select q.queue_id, %(priority)s, statement_timestamp() + least(%(ttl)s::float8, q.message_ttl) * interval '1 second',
         %(content_type)s, %(headers)s::json, %(body)s
  from {schema}.kombu_queues q
  where q.ephemeral and q.queue_id = any (array(
    select queue_id from {schema}.kombu_bindings
    where (select type from exchange) = 'direct' and exchange = %(exchange)s and routing_key = %(routing_key)s
    union all
    select queue_id from {schema}.kombu_bindings
    where (select type from exchange) in ('fanout', 'topic') and exchange = %(exchange)s
      and ((select type from exchange) = 'fanout' or (%(routing_key)s || '.') ~ pattern)))
  returning queue_id
)
select (select type from exchange), count(pg_notify(%(channel)s, (-s.queue_id)::text)::text)::int from stored s;

-- name: recipients producer
-- The ephemeral queues that a message would reach, for messages that are sealed for each of them. No row: there is no such
-- exchange; a row without a number: none is bound.
with exchange as materialized (
  select type from {schema}.kombu_exchanges where name = %(exchange)s
), bound as materialized (
  select distinct queue_id from (
    select queue_id from {schema}.kombu_bindings
    where (select type from exchange) = 'direct' and exchange = %(exchange)s and routing_key = %(routing_key)s
    union all
    select queue_id from {schema}.kombu_bindings
    where (select type from exchange) in ('fanout', 'topic') and exchange = %(exchange)s
      and ((select type from exchange) = 'fanout' or (%(routing_key)s || '.') ~ pattern)) b
)
select e.type, r.queue_id, r.name
from exchange e
left join lateral (
  select q.queue_id, q.name from bound b
  cross join lateral (
    select queue_id, name from {schema}.kombu_queues where queue_id = b.queue_id and ephemeral limit 1) q) r on true;

-- name: recipient producer
-- The same for the ephemeral queue of that name.
select queue_id, name from {schema}.kombu_queues where name = %(queue)s and ephemeral;

-- name: post_each producer relaxed
-- Put a message into ephemeral queues, as it was sealed for each. Answers with the number of recipients.
with stored as (
  insert into {schema}.kombu_mail (queue_id, priority, expires_at, content_type, headers, body)
  select q.queue_id, %(priority)s, statement_timestamp() + least(%(ttl)s::float8, q.message_ttl) * interval '1 second',
         %(content_type)s, r.headers::json, r.body
  from unnest(%(queue_ids)s::int[], %(headers)s::text[], %(bodies)s::bytea[]) r(queue_id, headers, body)
  cross join lateral (
    select queue_id, message_ttl from {schema}.kombu_queues where queue_id = r.queue_id and ephemeral limit 1) q
  returning queue_id
)
select count(pg_notify(%(channel)s, (-s.queue_id)::text)::text)::int from stored s;

-- name: exchanges_of consumer
-- The exchanges that ephemeral queues are bound to: by their rules, too, messages there must be sealed.
select queue_id, exchange from {schema}.kombu_bindings where queue_id = any (%(queue_ids)s::int[]);

-- name: post_to producer relaxed
-- Put one message into an ephemeral queue by its name. Answers with the number of recipients, 0 or 1.
with stored as (
  insert into {schema}.kombu_mail (queue_id, priority, expires_at, content_type, headers, body)
  select q.queue_id, %(priority)s, statement_timestamp() + least(%(ttl)s::float8, q.message_ttl) * interval '1 second',
         %(content_type)s, %(headers)s::json, %(body)s
  from {schema}.kombu_queues q where q.ephemeral and q.name = %(queue)s
  returning queue_id
)
select count(pg_notify(%(channel)s, (-s.queue_id)::text)::text)::int from stored s;

-- name: take consumer relaxed brief
-- Remove up to n messages of these queues, of each the urgent ones first and then the oldest, and answer with them.
--
-- Each queue comes with the lowest id to read, as lanes do in the claim of durable queues: what was taken stands in the
-- index until a vacuum may remove it. oldest and newest bound the transactions that were running: see marks.py.
with running as materialized (
  select pg_snapshot_xmin(s)::text::bigint as oldest, pg_snapshot_xmax(s)::text::bigint as newest
  from pg_current_snapshot() s
),
taken as materialized (
  select r.place
  from unnest(%(queue_ids)s::int[], %(marks)s::bigint[]) h(queue_id, mark)
  cross join lateral (
    select * from (
      select ctid as place from {schema}.kombu_mail
      where queue_id = h.queue_id and priority > 0 and mail_id >= h.mark
        and (expires_at is null or expires_at > statement_timestamp())
      order by queue_id, priority desc, mail_id limit %(limit)s for update skip locked) urgent
    union all
    select * from (
      select ctid as place from {schema}.kombu_mail
      where queue_id = h.queue_id and priority <= 0 and mail_id >= h.mark
        and (expires_at is null or expires_at > statement_timestamp())
      order by queue_id, mail_id limit %(limit)s for update skip locked) plain) r
  limit %(limit)s
)
delete from {schema}.kombu_mail m where m.ctid = any (array(select place from taken))
returning m.queue_id, m.mail_id, m.priority, m.enqueued_at, coalesce(m.content_type, ''), m.headers::text, m.body,
  (select oldest from running), (select newest from running);

-- name: put_back consumer relaxed
-- Return messages that were taken and not handled to their old places.
with stored as (
  insert into {schema}.kombu_mail (queue_id, mail_id, priority, enqueued_at, content_type, headers, body)
  select q.queue_id, r.mail_id, r.priority, r.enqueued_at, r.content_type, r.headers::json, r.body
  from unnest(%(queue_ids)s::int[], %(mail_ids)s::bigint[], %(priorities)s::smallint[], %(enqueued)s::timestamptz[],
              %(content_types)s::text[], %(headers)s::text[], %(bodies)s::bytea[])
       r(queue_id, mail_id, priority, enqueued_at, content_type, headers, body)
  cross join lateral (select queue_id from {schema}.kombu_queues where queue_id = r.queue_id limit 1) q
  on conflict do nothing
  returning queue_id
)
select count(pg_notify(%(channel)s, (-s.queue_id)::text)::text)::int from stored s;

-- name: mail_size consumer
-- How many pieces of mail wait: what a queue declared passively answers with.
select count(*)::int from {schema}.kombu_mail
where queue_id = %(queue_id)s and (expires_at is null or expires_at > statement_timestamp());

-- name: purge_mail consumer relaxed
-- Remove all mail of an ephemeral queue; answers with how many there were.
with gone as (delete from {schema}.kombu_mail where queue_id = %(queue_id)s returning queue_id)
select count(*)::int from gone;

-- name: mail_probe consumer brief
-- Is there anything to take? Nothing here is ever delayed.
select {queue_id}::int as queue_id,
  exists (select from {schema}.kombu_mail m where m.queue_id = -({queue_id})
          and (m.expires_at is null or m.expires_at > statement_timestamp())) as claimable,
  null::float8 as next_due, null::bigint as first, null::float8 as age;
