-- Chords: counted in one row, which the returning header tasks update one after the other, so exactly one sees the count
-- complete. `claim` is that one's random number. Counts are bounded, and added as bigint: no number in a row can make the
-- statement fail that stores what a task returned.

-- name: start_chord producer
-- Note a chord that is about to be sent. No row: there is one of this id.
insert into {schema}.celery_chords (group_id, header, content_type, expires_at)
values (%(group_id)s, %(header)s, %(content_type)s,
  statement_timestamp() + %(expires)s::float8 * interval '1 second')
on conflict do nothing
returning true;

-- name: look_at_chord producer glance
-- The size of a chord, and whether it is over.
select size, finished_at is not null from {schema}.celery_chords where group_id = %(group_id)s;

-- name: restart_chord consumer
-- Begin a chord anew that is over; one that is on its way goes on.
with cleared as (
  delete from {schema}.celery_chord_parts
  where group_id = %(group_id)s
    and exists (select from {schema}.celery_chords where group_id = %(group_id)s and finished_at is not null)
)
insert into {schema}.celery_chords as c (group_id, header, content_type, expires_at)
values (%(group_id)s, %(header)s, %(content_type)s,
  statement_timestamp() + %(expires)s::float8 * interval '1 second')
on conflict (group_id) do update set
  size = case when c.finished_at is null then c.size end,
  added = case when c.finished_at is null then c.added else 0 end,
  done = case when c.finished_at is null then c.done else 0 end,
  header = excluded.header, content_type = excluded.content_type, finished_at = null, expires_at = excluded.expires_at;

-- name: size_new_chord producer
-- Say how many header tasks there are. It comes before the last of them is sent. No row: it was said before, or there is no
-- such chord on its way.
update {schema}.celery_new_chords
set size = %(size)s::int, expires_at = statement_timestamp() + %(expires)s::float8 * interval '1 second'
where group_id = %(group_id)s
returning true;

-- name: size_chord consumer
-- The same for any chord.
insert into {schema}.celery_chords as c (group_id, size, expires_at)
values (%(group_id)s, %(size)s, statement_timestamp() + %(expires)s::float8 * interval '1 second')
on conflict (group_id) do update set
  size = excluded.size,
  added = case when c.finished_at is null then c.added else 0 end,
  done = case when c.finished_at is null then c.done else 0 end,
  finished_at = null, expires_at = excluded.expires_at;

-- name: add_to_chord consumer
-- One header task more than its size says: a header task that runs asks for it.
insert into {schema}.celery_chords as c (group_id, added, expires_at)
values (%(group_id)s, 1, statement_timestamp() + %(expires)s::float8 * interval '1 second')
on conflict (group_id) do update set added = least(c.added + 1::bigint, 1000000000);

-- name: return_part consumer
-- Note what a header task returned and count it. The one that completes the chord gets the claim. No row: the task was
-- counted before, or the chord is over. The expiry is moved only when a tenth of it has passed, so that the row stays
-- out of its index.
with part as (
  insert into {schema}.celery_chord_parts (group_id, place, task_id, status, result, content_type)
  select %(group_id)s, %(place)s::int, %(task_id)s, %(status)s, %(result)s::bytea, %(content_type)s
  where not exists (
    select from {schema}.celery_chords where group_id = %(group_id)s and finished_at is not null)
  on conflict do nothing
  returning group_id
)
insert into {schema}.celery_chords as c (group_id, done, expires_at)
select group_id, 1, statement_timestamp() + %(expires)s::float8 * interval '1 second' from part
on conflict (group_id) do update set
  done = least(c.done + 1::bigint, 1000000000),
  expires_at = case
    when c.expires_at > excluded.expires_at - %(expires)s::float8 * interval '0.1 second' then c.expires_at
    else excluded.expires_at end,
  claim = case when c.done + 1::bigint = c.size + c.added::bigint then %(claim)s else c.claim end,
  claimed_until = case
    when c.done + 1::bigint = c.size + c.added::bigint then statement_timestamp() + %(seconds)s::float8 * interval '1 second'
    else c.claimed_until end
-- The look above may be older than the chord's end, which removed the parts and with them what tells a second one.
where c.finished_at is null
returning c.claim = %(claim)s, c.header, c.content_type;

-- name: claim_chord consumer
-- Take over a complete chord that is not over and whose claim has run out.
update {schema}.celery_chords
set claim = %(claim)s, claimed_until = statement_timestamp() + %(seconds)s::float8 * interval '1 second'
where group_id = %(group_id)s and finished_at is null and done >= size + added::bigint
  and (claimed_until is null or claimed_until <= statement_timestamp())
returning header, content_type, body, body_type;

-- name: read_parts consumer
-- What the header tasks returned, in the order of the header.
select place, task_id, status, result, content_type from {schema}.celery_chord_parts
where group_id = %(group_id)s order by place, number;

-- name: keep_body consumer
-- Keep what is to be published for whoever may have to take over.
update {schema}.celery_chords set body = %(body)s, body_type = %(body_type)s
where group_id = %(group_id)s and claim = %(claim)s;

-- name: extend_claim consumer
-- Keep the chord for a while longer; no row when it has passed to somebody else.
update {schema}.celery_chords set claimed_until = statement_timestamp() + %(seconds)s::float8 * interval '1 second'
where group_id = %(group_id)s and claim = %(claim)s and finished_at is null
returning true;

-- name: finish_chord consumer
-- The chord is over. What remains of it makes later runs of its header tasks harmless, until it expires.
with finished as (
  update {schema}.celery_chords
  set finished_at = statement_timestamp(), claim = null, claimed_until = null, header = null, body = null
  where group_id = %(group_id)s and claim = %(claim)s
  returning group_id
)
delete from {schema}.celery_chord_parts where group_id = %(group_id)s and exists (select from finished);

-- name: abandoned_chords consumer
-- Complete chords whose claimer did not come to publish their body.
select group_id from {schema}.celery_chords
where claimed_until <= statement_timestamp() and body is not null order by claimed_until limit %(limit)s;

-- name: prune_chords consumer
-- Remove up to `limit` chords that have expired, with their parts.
with gone as materialized (
  select ctid as place, group_id from {schema}.celery_chords
  where expires_at <= statement_timestamp() order by expires_at limit %(limit)s for update skip locked
), parts as (
  delete from {schema}.celery_chord_parts where group_id = any (array(select group_id from gone))
)
delete from {schema}.celery_chords c where c.ctid = any (array(select place from gone)) returning 1;
