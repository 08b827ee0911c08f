-- What the roles of `pgqrs install --roles` may do with the broker's tables: see pgqrs_core/sql/migrations/grants.sql.

-- name: shared
-- Whoever consumes declares, and so does everything with exchanges, ephemeral queues and bindings; a durable queue is a
-- table, which is an administrator's to make. Producers declare what is there already, which changes nothing.
revoke all on {schema}.kombu_exchanges, {schema}.kombu_queues, {schema}.kombu_bindings, {schema}.kombu_consumers,
  {schema}.kombu_mail from public;
grant select on {schema}.kombu_exchanges, {schema}.kombu_queues, {schema}.kombu_bindings to {producer}, {observer};
grant select on {schema}.kombu_consumers to {observer};
grant insert (queue_id, priority, expires_at, content_type, headers, body), select (queue_id)
  on {schema}.kombu_mail to {producer};
grant select, insert, update, delete on {schema}.kombu_exchanges, {schema}.kombu_queues, {schema}.kombu_bindings,
  {schema}.kombu_consumers, {schema}.kombu_mail to {consumer};
grant select (queue_id, mail_id, enqueued_at, expires_at) on {schema}.kombu_mail to {observer};
