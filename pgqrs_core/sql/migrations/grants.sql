-- What the roles of `pgqrs install --roles` may do. Run whenever one may be missing, so all of it can be repeated.
-- The tables belong to {admin}: whoever has that role may do everything with them, and needs no grants.

-- name: shared
grant usage on schema {schema} to {producer}, {consumer}, {observer}, {admin};
grant create on schema {schema} to {admin};
revoke all on {schema}.migrations, {schema}.queues, {schema}.waiters, {schema}.leaders, {schema}.roles,
  {schema}.idempotency_keys from public;
grant select on {schema}.migrations, {schema}.queues, {schema}.waiters to {producer}, {consumer}, {observer};
grant insert, update, delete on {schema}.waiters to {consumer};
grant select, insert, update, delete on {schema}.leaders to {consumer};
grant select on {schema}.leaders to {observer};
grant select, insert, update on {schema}.idempotency_keys to {producer};
grant select, update, delete on {schema}.idempotency_keys to {consumer};

-- name: queue
-- A producer reads nothing but the id that it is given, or draws itself for a message with an idempotency key, and sets no
-- column that says who has a message, and how often. A consumer may put another message in the place of one that it holds,
-- as Dramatiq's retries do; what it may remove it could also purge.
revoke all on {queue}, {view} from public;
grant insert (message_id, lane, priority, due_at, expires_at, content_type, headers, body), select (message_id)
  on {queue} to {producer};
grant usage on sequence {sequence} to {producer};
grant select, delete, update (lane, priority, attempt, lease_until, lease_token, enqueued_at, due_at, expires_at,
  content_type, headers, body, last_error) on {queue} to {consumer};
grant select (lane, message_id, lease_until, enqueued_at, due_at, expires_at) on {queue} to {observer};

-- name: archive
-- A consumer adds, and as housekeeper removes what is old; what was archived it cannot read.
revoke all on {archive} from public;
grant insert (message_id, priority, attempt, enqueued_at, content_type, headers, body),
  select (ctid, message_id, archived_at), delete on {archive} to {consumer};
grant select (message_id) on {archive} to {observer};

-- name: maintain
-- From PostgreSQL 17 on workers may vacuum without owning the table.
grant maintain on {queue} to {consumer};
