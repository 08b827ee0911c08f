-- safe: no
--
-- Ids of messages come from their sequences alone, and nobody can read idempotency keys: docs/adr/0013-idempotency-keys.md.
-- Code from before can no longer enqueue with a key.

-- name: shared
-- Keys are hashed in their places, which rewrites the table: about 3 seconds for a million keys, in which keyed enqueues wait.
-- No queue keeps a key for longer than ten years: one that ends later was written by hand, to keep a message from being stored.
delete from {schema}.idempotency_keys
where expires_at <= statement_timestamp() or expires_at > statement_timestamp() + interval '315360000 seconds';
alter table {schema}.idempotency_keys
  alter column key type bytea using sha256(convert_to(queue_id || ':' || key, 'UTF8'));
alter table {schema}.idempotency_keys rename column key to key_hash;
-- Whether the enqueue that came last under this key stored its message. Constant, so that no row is written.
alter table {schema}.idempotency_keys add column is_new boolean not null default true;

-- name: queue
-- Takes no time. Only COPY, `overriding system value` and replication give ids of their own from now on.
alter table {queue} alter column message_id set generated always;

-- A message with a key is stored with the rights of the tables' owner: to find out whether a key is known takes the right to
-- read and to change keys, and to note the id of a message together with its key the right to choose an id. Whoever may call
-- this gets neither. It answers with the id and the hash of each key, then with the id of each message without one, in their
-- order. No hash may occur twice.
--
-- A key decides, and not an id, whether a message is new: `is_new` is written while the key is locked. Whoever comes second
-- waits at the key until the transaction of the first has ended, and then sees what it wrote whatever its snapshot shows.
-- The transaction takes its number before any id is drawn, and all tables are locked before: low-water marks need both.
create function {enqueue}(
  priorities smallint[], ats timestamptz[], delays float8[], ttls float8[], content_types text[], headers text[],
  bodies bytea[], key_hashes bytea[]
) returns table (message_id bigint, key_hash bytea)
language plpgsql security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $pgqrs$
#variable_conflict use_column
begin
  -- What the policies of a producer refuse (grants.sql), which do not apply to the owner. The same limits as in
  -- operations/enqueue.py.
  if 0 > any (priorities) or 9 < any (priorities)
      or '1970-01-01Z' > any (ats) or '10000-01-01Z' <= any (ats)
      or 0 > any (delays) or 315360000 < any (delays) or 0 > any (ttls) or 315360000 < any (ttls) then
    raise exception 'a priority, time, delay or time to live is out of range' using errcode = 'check_violation';
  end if;
  return query
  with head as materialized (
    -- As text: options that were written by hand may hold what cannot be looked into, or no such number.
    select pg_current_xact_id(), interval '1 second' * coalesce(
      (select substring(q.options::text from '"idempotency_seconds": ?(\d{{1,9}}(?:\.\d{{1,9}})?)[,}}]')::float8
       from {schema}.queues q where q.queue_id = {queue_id}),
      86400) as keep
  ),
  m as materialized (
    select nextval({sequence_name}::regclass) as message_id, d.*,
           coalesce(d.at, statement_timestamp() + d.delay * interval '1 second') as due_at
    from head cross join unnest(priorities, ats, delays, ttls, content_types, headers, bodies, key_hashes)
      d(priority, at, delay, ttl, content_type, headers, body, key_hash)
  ),
  k as (
    insert into {schema}.idempotency_keys as k (queue_id, key_hash, message_id, expires_at)
    select {queue_id}, m.key_hash, m.message_id, statement_timestamp() + (select keep from head)
    from m where m.key_hash is not null order by m.key_hash
    on conflict (queue_id, key_hash) do update
    set is_new = k.expires_at <= statement_timestamp(),
        message_id = case when k.expires_at > statement_timestamp() then k.message_id else excluded.message_id end,
        expires_at = case when k.expires_at > statement_timestamp() then k.expires_at else excluded.expires_at end
    returning k.key_hash, k.message_id, k.is_new
  ),
  stored as (
    insert into {queue} (message_id, lane, priority, due_at, expires_at, content_type, headers, body)
    overriding system value
    select m.message_id, case when m.due_at is null then m.priority else -1 - m.priority end, m.priority, m.due_at,
           statement_timestamp() + m.ttl * interval '1 second', m.content_type, m.headers::json,
           -- A body may not be null: so this refuses what is too large.
           case when octet_length(m.body) <= 268435456 and coalesce(octet_length(m.headers), 0) <= 1048576
                  and coalesce(octet_length(m.content_type), 0) <= 1020 then m.body end
    from m where m.key_hash is null or m.key_hash in (select k.key_hash from k where k.is_new)
  )
  select k.message_id, k.key_hash from k union all select m.message_id, null from m where m.key_hash is null;
end
$pgqrs$;
revoke all on function {enqueue} from public;
