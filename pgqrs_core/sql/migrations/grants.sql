-- What the roles of `pgqrs install --roles` may do. Run whenever one may be missing, so all of it can be repeated.
-- The tables belong to {admin}: whoever has that role may do everything with them, and needs no grants.

-- name: shared
revoke all on {schema}.migrations, {schema}.queues, {schema}.waiters, {schema}.leaders, {schema}.roles,
  {schema}.idempotency_keys from public;
grant select on {schema}.migrations, {schema}.queues, {schema}.waiters to {producer}, {consumer}, {observer};
grant insert, update, delete on {schema}.waiters to {consumer};
grant select, insert, update, delete on {schema}.leaders to {consumer};
grant select on {schema}.leaders to {observer};
-- Keys are written by functions, with the rights of the owner. A consumer removes those that are over, and locks them first,
-- which takes the right to change some column. No hash is readable: who guesses a key could find out whether it was used.
revoke all on {schema}.idempotency_keys from {producer}, {consumer}, {observer};
grant select (ctid, queue_id, message_id, expires_at), update (expires_at), delete on {schema}.idempotency_keys to {consumer};
grant select (queue_id, message_id) on {schema}.idempotency_keys to {observer};
grant select on sequence {schema}.queues_queue_id_seq to {consumer}, {observer};

-- name: queue
-- A producer reads nothing but the id that it is given, and sets no column that says who has a message, and how often; ids come
-- from the sequence. A consumer may put another message in the place of one that it holds, as Dramatiq's retries do, and give a
-- message that has a twin the next id, which is all that `generated always` lets it do; what it may remove it could also purge.
revoke all on {queue}, {view} from public;
revoke all on {queue} from {producer};
revoke all on sequence {sequence} from {producer};
grant insert (lane, priority, due_at, expires_at, content_type, headers, body), select (message_id) on {queue} to {producer};
grant execute on function {enqueue} to {producer};
grant select, delete, update (lane, priority, attempt, message_id, lease_until, lease_token, enqueued_at, due_at, expires_at,
  content_type, headers, body, last_error) on {queue} to {consumer};
grant select (lane, message_id, lease_until, enqueued_at, due_at, expires_at) on {queue} to {observer};
grant select on sequence {sequence} to {consumer}, {observer};

-- Which messages a producer may add: alive, at a time that exists, and of a size that can be handled. These are policies and no
-- CHECK constraints: PostgreSQL reads those anew from their texts in each statement, also in those that claim, which takes as
-- long as the insert itself. See docs/adr/0020-rules-for-producers.md. Others than the owner, superusers and roles with
-- BYPASSRLS are subject to them.
do $pgqrs$
begin
  if (select relrowsecurity from pg_class where oid = {queue_name}::regclass) then
    return;
  end if;
  alter table {queue} enable row level security;
  create policy everything_is_seen on {queue} for select using (true);
  create policy everything_may_change on {queue} for update using (true);
  create policy everything_may_go on {queue} for delete using (true);
  create policy messages_are_sound on {queue} for insert with check (
    lane = case when due_at is null then priority else -1 - priority end and priority between 0 and 9
    and coalesce(due_at >= '1970-01-01Z' and due_at < '10000-01-01Z', true)
    and coalesce(expires_at >= '1970-01-01Z' and expires_at < '10000-01-01Z', true)
    and octet_length(body) <= 268435456 and coalesce(octet_length(content_type) <= 1020, true)
    and coalesce(pg_column_size(headers) <= 1048576 + 8, true));
end
$pgqrs$;

-- name: archive
-- A consumer adds, and as housekeeper removes what is old; what was archived it cannot read.
revoke all on {archive} from public;
grant insert (message_id, priority, attempt, enqueued_at, content_type, headers, body),
  select (ctid, message_id, archived_at), delete on {archive} to {consumer};
grant select (message_id) on {archive} to {observer};

-- name: maintain
-- From PostgreSQL 17 on workers may vacuum without owning the table.
grant maintain on {queue} to {consumer};
