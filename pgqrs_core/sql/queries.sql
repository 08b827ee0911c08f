-- What happens to messages: enqueue, claim, settle. The tables are described in migrations/0001_initial.sql.
--
-- Rows are found by (lane, message_id), the primary key, in subqueries that the planner can run in one way only, and then
-- changed at their places; no statement joins a table with a list. All times are the database's, and statement_timestamp() rather than clock_timestamp(), which keeps
-- them legal on a sharded schema of Citus.

-- name: enqueue_plain producer
-- Store one message for delivery at once. Also tells whether some consumer sleeps: only then is a NOTIFY worth its
-- price. Each parameter that this lacks of the next statement is 1 µs of the caller's time.
insert into {queue} (lane, priority, content_type, headers, body)
values (%(priority)s, %(priority)s, %(content_type)s, %(headers)s::json, %(body)s)
returning message_id,
  exists (select from {schema}.waiters w where w.queue_id = {queue_id} and w.until > statement_timestamp());

-- name: enqueue_unasked producer
-- The same for a producer who asked, or rang, a few milliseconds ago: see doorbell.py. The question is 12 of 200 µs.
insert into {queue} (lane, priority, content_type, headers, body)
values (%(priority)s, %(priority)s, %(content_type)s, %(headers)s::json, %(body)s)
returning message_id, false;

-- name: enqueue_one producer
-- Store one message with a delay or a time to live.
insert into {queue} (lane, priority, due_at, expires_at, content_type, headers, body)
values (%(lane)s, %(priority)s,
        coalesce(%(at)s::timestamptz, statement_timestamp() + %(delay)s::float8 * interval '1 second'),
        statement_timestamp() + %(ttl)s::float8 * interval '1 second',
        %(content_type)s, %(headers)s::json, %(body)s)
returning message_id,
  exists (select from {schema}.waiters w where w.queue_id = {queue_id} and w.until > statement_timestamp());

-- name: enqueue_alike producer
-- Store many messages that differ only in their bodies; ids come back in their order.
insert into {queue} (lane, priority, due_at, expires_at, content_type, headers, body)
select %(lane)s, %(priority)s,
       coalesce(%(at)s::timestamptz, statement_timestamp() + %(delay)s::float8 * interval '1 second'),
       statement_timestamp() + %(ttl)s::float8 * interval '1 second',
       %(content_type)s, %(headers)s::json, b.body
from unnest(%(bodies)s::bytea[]) b(body)
returning message_id,
  exists (select from {schema}.waiters w where w.queue_id = {queue_id} and w.until > statement_timestamp());

-- name: enqueue_mixed producer
-- Store many messages, each with its own priority, delay, time to live, type and headers.
insert into {queue} (lane, priority, due_at, expires_at, content_type, headers, body)
select m.lane, m.priority,
       coalesce(m.at, statement_timestamp() + m.delay * interval '1 second'),
       statement_timestamp() + m.ttl * interval '1 second',
       m.content_type, m.headers::json, m.body
from unnest(%(lanes)s::smallint[], %(priorities)s::smallint[], %(ats)s::timestamptz[], %(delays)s::float8[],
            %(ttls)s::float8[], %(content_types)s::text[], %(headers)s::text[], %(bodies)s::bytea[])
     m(lane, priority, at, delay, ttl, content_type, headers, body)
returning message_id,
  exists (select from {schema}.waiters w where w.queue_id = {queue_id} and w.until > statement_timestamp());

-- name: enqueue_keyed producer
-- Store many messages as the statement before does, but of those with a key only the first: where a key is known, the
-- answer is the id of the message that was stored under it, and nothing is stored. Answers with an id and the key's hash for
-- each key, and with an id for each message without one, in their order. No key may occur twice. The function is described in
-- migrations/0005_ids_and_keys.sql.
--
-- The number of the queue is in the hashes. Where the queue was made anew since, and has another one, nothing is stored and
-- nothing comes back: so the function takes an argument that depends on the queue's row, and cannot be called before.
select e.message_id,
  exists (select from {schema}.waiters w where w.queue_id = {queue_id} and w.until > statement_timestamp()), e.key_hash
from {schema}.queues q cross join lateral
  {enqueue}(%(priorities)s::smallint[], %(ats)s::timestamptz[], %(delays)s::float8[], %(ttls)s::float8[],
            %(content_types)s::text[], %(headers)s::text[], %(bodies)s::bytea[],
            case when q.queue_id = {queue_id} then %(keys)s::bytea[] end) e
where q.queue_id = {queue_id};

-- name: claim consumer relaxed brief
-- Take up to n messages for `lease` seconds, by lane in the order given and within a lane by age.
--
-- Ready lanes are read through the primary key from the consumer's low-water mark on; delayed lanes through
-- (lane, due_at). Each arm locks what it reads and skips what others have locked; the outer limit stops the arms as
-- soon as n rows are locked, and materialized keeps the planner from asking for more. What is locked cannot move, so
-- the update goes straight to its place, without a second walk down the index: docs/adr/0008-claim-by-place.md. Nothing
-- here changes an indexed column. oldest and newest bound the transactions that were running: see marks.py. Of a row that
-- was written by hand no value makes this fail, or a statement below: the others would fail with it.
with running as materialized (
  select pg_snapshot_xmin(s)::text::bigint as oldest, pg_snapshot_xmax(s)::text::bigint as newest
  from pg_current_snapshot() s
),
picked as materialized (
  select r.place
  from unnest(%(lanes)s::smallint[], %(marks)s::bigint[]) h(lane, mark)
  cross join lateral (
    select d.place from (
      select ctid as place from {queue}
      where lane = h.lane and h.lane < 0 and due_at <= statement_timestamp()
        and lease_until <= statement_timestamp() and (expires_at is null or expires_at > statement_timestamp())
      order by due_at, message_id limit %(limit)s for update skip locked) d
    union all
    select e.place from (
      select ctid as place from {queue}
      where lane = h.lane and h.lane >= 0 and message_id >= h.mark
        and lease_until <= statement_timestamp() and (expires_at is null or expires_at > statement_timestamp())
      order by message_id limit %(limit)s for update skip locked) e
  ) r
  where not exists (select from {schema}.queues where queue_id = {queue_id} and paused_at is not null)
  limit %(limit)s
)
update {queue} q
set attempt = greatest(least(q.attempt, 2147483646), 0) + 1,
    lease_until = statement_timestamp() + %(lease)s::float8 * interval '1 second',
    lease_token = %(token)s
where q.ctid = any (array(select place from picked))
returning q.lane, q.message_id, q.attempt, q.priority, q.enqueued_at, coalesce(q.content_type, ''), q.headers::text,
  q.body, q.lease_token, q.ctid::text, (select oldest from running), (select newest from running);

-- name: oldest_writer consumer relaxed
-- Answer with the lowest number among the running transactions that have locked the queue to write, and where there is
-- none with the next number: who starts later draws higher ids. See marks.py.
--
-- The locks are read once, for they change meanwhile. They show 32 bits of a number; one that seems to come after the next
-- one is younger than the snapshot.
with locks as materialized (
  select virtualtransaction as holder, database, relation, transactionid from pg_locks where granted and mode in
    ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
),
running as (
  select n.next, (n.next - t.transactionid::text::bigint) & 4294967295 as age
  from locks q
  join locks t on t.holder = q.holder and t.transactionid is not null
  cross join (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next) n
  where q.relation = {queue_name}::regclass
    and q.database = (select oid from pg_database where datname = current_database())
)
select coalesce((select min(next - age) from running where age < 2147483648),
                pg_snapshot_xmax(pg_current_snapshot())::text::bigint);

-- name: ack consumer brief
-- Remove messages whose leases are still held; answers with those.
--
-- This and the next four go to the places that the claim answered with, and then check that what lies there is what was
-- claimed. The ids are sorted, so a binary search tells which lane and token belong to a row. A row that has moved since,
-- because its lease was extended, is missed; operations/settle.py then asks `locate` and comes again. So there is one way to
-- run them, whatever the statistics and settings: docs/adr/0018-settle-by-place.md.
delete from {queue} q
where q.ctid = any (%(places)s::tid[])
  and q.lane = (%(lanes)s::smallint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id = (%(ids)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.lease_token = (%(tokens)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
returning q.message_id;

-- name: archive consumer brief
-- Move messages whose leases are still held to the archive; answers with those.
with gone as (
  delete from {queue} q
  where q.ctid = any (%(places)s::tid[])
    and q.lane = (%(lanes)s::smallint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
    and q.message_id = (%(ids)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
    and q.lease_token = (%(tokens)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  returning q.message_id, q.priority, q.attempt, q.enqueued_at, q.content_type, q.headers, q.body
)
insert into {archive} (message_id, priority, attempt, enqueued_at, content_type, headers, body)
select message_id, priority, attempt, enqueued_at, content_type, headers, body from gone
returning message_id;

-- name: nack consumer brief
-- Give failed messages back after a delay, or bury them: when told to, or when their attempts are used up.
-- Answers with the lane each went to.
--
-- This, the next two and `replace` pass by a message that has a twin where it is to go: another one with the same id, as an
-- asynchronous failover or a restored backup can leave behind. operations/twins.py then gives it another id. The twins are
-- found before: asked for each row, the planner would take the visit of a place for dear, and read the whole table.
update {queue} q
set (lane, due_at, last_error) = (
      select case when f.dead then -100 else -1 - greatest(least(q.priority, 9), 0) end,
             statement_timestamp() + case when f.dead then 0 else (%(delays)s::float8[])[f.n] end * interval '1 second',
             (%(errors)s::text[])[f.n]::json
      from (select n, (%(burials)s::boolean[])[n] or q.attempt >= %(max_attempts)s as dead
            from width_bucket(q.message_id, %(ids)s::bigint[]) n) f),
    lease_until = 'epoch', lease_token = 0
where q.ctid = any (%(places)s::tid[])
  and q.lane = (%(lanes)s::smallint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id = (%(ids)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.lease_token = (%(tokens)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id <> all (array(
    select a.message_id from unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) a(lane, message_id)
    cross join lateral (
      select from {queue} where lane in (case when a.lane >= 0 then -1 - a.lane else -100 end, -100)
        and message_id = a.message_id limit 1) t))
returning q.message_id, q.lane;

-- name: release consumer brief
-- Give messages back at once, in their old order and ahead of what waits. Through the delayed lanes, which no low-water
-- mark hides: due since they were enqueued. `refund` is 1 where the attempt is not to count, else 0.
update {queue} q
set lane = -1 - greatest(least(q.priority, 9), 0), due_at = greatest(least(q.enqueued_at, statement_timestamp()), 'epoch'),
    attempt = greatest(greatest(q.attempt, 0) - %(refund)s, 0), lease_until = 'epoch', lease_token = 0
where q.ctid = any (%(places)s::tid[])
  and q.lane = (%(lanes)s::smallint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id = (%(ids)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.lease_token = (%(tokens)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id <> all (array(
    select a.message_id from unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) a(lane, message_id)
    cross join lateral (
      select from {queue} where a.lane >= 0 and lane = -1 - a.lane and message_id = a.message_id limit 1) t))
returning q.message_id;

-- name: postpone consumer brief
-- Give messages back that this consumer cannot handle, and others perhaps can: their attempts do not count, and they are due
-- after half their age, 1 second at least and 60 at most. So those that no consumer handles for long cost little.
update {queue} q
set lane = -1 - greatest(least(q.priority, 9), 0), attempt = greatest(q.attempt, 1) - 1, lease_until = 'epoch', lease_token = 0,
    due_at = statement_timestamp() + least(greatest(
      (statement_timestamp() - greatest(least(q.enqueued_at, statement_timestamp()), 'epoch')) / 2,
      interval '1 second'), interval '60 seconds'),
    last_error = (%(errors)s::text[])[width_bucket(q.message_id, %(ids)s::bigint[])]::json
where q.ctid = any (%(places)s::tid[])
  and q.lane = (%(lanes)s::smallint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id = (%(ids)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.lease_token = (%(tokens)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id <> all (array(
    select a.message_id from unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) a(lane, message_id)
    cross join lateral (
      select from {queue} where a.lane >= 0 and lane = -1 - a.lane and message_id = a.message_id limit 1) t))
returning q.message_id;

-- name: locate consumer glance brief
-- Answer with the places of messages whose leases are still held.
select r.message_id, r.place
from unnest(%(lanes)s::smallint[], %(ids)s::bigint[], %(tokens)s::bigint[]) a(lane, message_id, token)
cross join lateral (
  select message_id, ctid::text as place from {queue}
  where lane = a.lane and message_id = a.message_id and lease_token = a.token limit 1) r;

-- name: unlocked consumer relaxed brief
-- Answer with the messages whose leases are still held and whose rows no other session has locked.
select r.message_id
from unnest(%(lanes)s::smallint[], %(ids)s::bigint[], %(tokens)s::bigint[]) a(lane, message_id, token)
cross join lateral (
  select message_id from {queue}
  where lane = a.lane and message_id = a.message_id and lease_token = a.token limit 1
  for update skip locked) r;

-- name: replace consumer brief
-- Put another message in the place of one whose lease is still held, as if it were enqueued now; it keeps its id. Also
-- tells whether some consumer sleeps. Through the delayed lanes, which no low-water mark hides.
update {queue} q
set lane = -1 - %(priority)s::int, priority = %(priority)s::int, attempt = 0, lease_until = 'epoch', lease_token = 0,
    enqueued_at = statement_timestamp(),
    due_at = coalesce(%(at)s::timestamptz,
                      statement_timestamp() + coalesce(%(delay)s::float8, 0) * interval '1 second'),
    expires_at = statement_timestamp() + %(ttl)s::float8 * interval '1 second',
    content_type = %(content_type)s, headers = %(headers)s::json, body = %(body)s, last_error = %(error)s::json
where q.lane = %(lane)s and q.message_id = %(id)s and q.lease_token = %(token)s
  and (select true from {queue} t
       where t.lane = -1 - %(priority)s::int and t.message_id = q.message_id and t.ctid <> q.ctid limit 1) is null
returning q.message_id,
  exists (select from {schema}.waiters w where w.queue_id = {queue_id} and w.until > statement_timestamp());

-- name: renumber consumer brief
-- Give a message whose lease is still held the next id of its queue; answers with that and the place.
update {queue} q set message_id = default
where q.lane = %(lane)s and q.message_id = %(id)s and q.lease_token = %(token)s
returning q.message_id, q.ctid::text;

-- name: renumber_free consumer brief
-- Give those of these messages new ids that have a twin where they would go and that nobody holds; answers with the lane and the
-- new id of each.
with twins as materialized (
  select r.place from unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) a(lane, message_id)
  cross join lateral (
    select o.ctid as place from {queue} o
    where o.lane = a.lane and o.message_id = a.message_id and o.lease_until <= statement_timestamp()
      and (select true from {queue} t
           where t.lane in (-1 - o.priority, -100) and t.message_id = o.message_id and t.ctid <> o.ctid limit 1)
    for update skip locked) r
)
update {queue} q set message_id = default
where q.ctid = any (array(select place from twins))
returning q.lane, q.message_id;

-- name: extend consumer relaxed brief
-- Let leases that are still held run for `lease` seconds from now; answers with those. A lease is extended again and again
-- and moves each time, so this locates the rows by itself.
update {queue} q
set lease_until = statement_timestamp() + %(lease)s::float8 * interval '1 second'
where q.ctid = any (array(
    select r.place
    from unnest(%(lanes)s::smallint[], %(ids)s::bigint[], %(tokens)s::bigint[]) a(lane, message_id, token)
    cross join lateral (
      select ctid as place from {queue}
      where lane = a.lane and message_id = a.message_id and lease_token = a.token limit 1) r))
  and q.lane = (%(lanes)s::smallint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.message_id = (%(ids)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
  and q.lease_token = (%(tokens)s::bigint[])[width_bucket(q.message_id, %(ids)s::bigint[])]
returning q.message_id;

-- name: watch consumer relaxed
-- Note that this process sleeps on these queues for `seconds`, unless it says otherwise. Answers, for each queue, with how
-- many other processes sleep there, and how many of them have lower numbers than this one. Those that have died are
-- removed: the lock on its number that a sleeper holds (see wakeups.py) is gone, or its time is up. If there are any, the
-- two that come first now may have to poll in their place, and are told. So they are when this process is new there
-- (`fresh`) and comes before one of them, or when the other one believed to be alone.
with others as materialized (
  select w.queue_id, w.consumer,
         w.until > statement_timestamp() and not pg_try_advisory_xact_lock_shared(w.consumer) as lives
  from {schema}.waiters w where w.queue_id = any(%(queue_ids)s::int[]) and w.consumer <> %(consumer)s
),
dead as materialized (
  -- Two processes may do so at once, in different orders.
  select d.queue_id, d.consumer from others o cross join lateral (
    select w.queue_id, w.consumer from {schema}.waiters w
    where w.queue_id = o.queue_id and w.consumer = o.consumer limit 1 for update skip locked) d
  where not o.lives
),
gone as (
  delete from {schema}.waiters w where w.queue_id = any(%(queue_ids)s::int[])
    and ((w.queue_id, w.consumer) in (select d.queue_id, d.consumer from dead d)) is true
),
told as materialized (
  select count(pg_notify('pgqrs:' || h.consumer, h.queue_id || ' poll')::text)
  from (
    select queue_id from others group by queue_id
    having bool_or(not lives) or %(fresh)s and (count(*) filter (where lives) = 1
                                 or count(*) filter (where lives and consumer < %(consumer)s) < 2)) d
  cross join lateral (
    select o.queue_id, o.consumer from others o where o.queue_id = d.queue_id and o.lives
    order by o.consumer limit 2) h
),
mine as (
  insert into {schema}.waiters (queue_id, consumer, until)
  select q.id, %(consumer)s, statement_timestamp() + %(seconds)s::float8 * interval '1 second'
  from unnest(%(queue_ids)s::int[]) q(id)
  on conflict (queue_id, consumer) do update set until = excluded.until
  returning queue_id
)
select m.queue_id, count(o.consumer) filter (where o.lives)::int,
       count(o.consumer) filter (where o.lives and o.consumer < %(consumer)s)::int, (select count from told)
from mine m left join others o on o.queue_id = m.queue_id
group by m.queue_id;

-- name: unwatch consumer relaxed
-- This process is busy again, or leaves. Where it `polled` for others, the two that come first now are told.
with gone as (
  delete from {schema}.waiters where consumer = %(consumer)s and queue_id = any(%(queue_ids)s::int[]) returning queue_id
)
select count(pg_notify('pgqrs:' || h.consumer, h.queue_id || ' poll')::text)
from gone g cross join lateral (
  select w.queue_id, w.consumer from {schema}.waiters w
  where w.queue_id = g.queue_id and w.consumer <> %(consumer)s and w.until > statement_timestamp()
  order by w.consumer limit 2) h
where %(polled)s;

-- name: probe consumer brief
-- Without claiming: is anything claimable, in how many seconds is the next delayed message due, a day at most, which
-- message is the first that is claimable, and for how many seconds has it been?
select {queue_id}::int as queue_id, f.message_id is not null as claimable, (
    select extract(epoch from min(least(r.due_at, statement_timestamp() + interval '1 day')) - statement_timestamp())::float8
    from unnest('{{-10,-9,-8,-7,-6,-5,-4,-3,-2,-1}}'::smallint[]) h(lane) cross join lateral (
      select due_at from {queue} where lane = h.lane and due_at > statement_timestamp() and due_at < 'infinity'
      order by due_at, message_id limit 1) r
  ) as next_due, f.message_id as first, f.age
from (select exists (select from {schema}.queues where queue_id = {queue_id} and paused_at is not null) as paused) p
left join lateral (
  select a.message_id,
    extract(epoch from statement_timestamp() - greatest(least(a.since, statement_timestamp()), 'epoch'))::float8 as age
  from (
    select r.message_id, r.since
    from unnest('{{9,8,7,6,5,4,3,2,1,0}}'::smallint[]) h(lane) cross join lateral (
      select message_id, greatest(enqueued_at, lease_until) as since
      from {queue} where lane = h.lane and lease_until <= statement_timestamp()
        and (expires_at is null or expires_at > statement_timestamp())
      order by message_id limit 1) r
    union all
    select r.message_id, r.since
    from unnest('{{-10,-9,-8,-7,-6,-5,-4,-3,-2,-1}}'::smallint[]) h(lane) cross join lateral (
      select message_id, greatest(due_at, lease_until) as since
      from {queue} where lane = h.lane and due_at <= statement_timestamp()
        and lease_until <= statement_timestamp() and (expires_at is null or expires_at > statement_timestamp())
      order by due_at, message_id limit 1) r
  ) a
  where not p.paused limit 1
) f on true;

-- name: notify anyone
-- Notify up to `count` of the processes that sleep on a queue, chosen at random, each on a channel of its own; not
-- `consumer` itself, nor those that have died since they noted it (see watch). Answers with a row for each. The commit does
-- not wait for the disk, on whatever connection: it would do so holding the lock that NOTIFY takes, for all databases.
with sleepers as materialized (
  select w.consumer from {schema}.waiters w
  where w.queue_id = %(queue_id)s and w.until > statement_timestamp() and w.consumer <> %(consumer)s
  order by random()
),
chosen as materialized (
  select consumer from sleepers where not pg_try_advisory_xact_lock_shared(consumer) limit %(count)s
)
select pg_notify('pgqrs:' || c.consumer, %(payload)s)
from set_config('synchronous_commit', 'off', true) cross join chosen c;
