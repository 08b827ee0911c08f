-- safe: yes
--
-- Which message was stored under a producer's key: docs/adr/0013-idempotency-keys.md.

-- name: shared
create table {schema}.idempotency_keys (
  queue_id    int         not null,            -- no foreign key: it would lock the queue's row at each enqueue
  key         text        collate "C" not null,
  message_id  bigint      not null,
  expires_at  timestamptz not null,            -- forgotten from then on, whether or not the row is still here
  primary key (queue_id, key)
) with (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0
);
create index on {schema}.idempotency_keys (expires_at);
