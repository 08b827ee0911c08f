-- safe: yes
--
-- Ephemeral queues deliver by priority. Nearly all of their messages have none, so only the others are indexed by it.

-- name: shared
create index on {schema}.kombu_mail (queue_id, priority desc, mail_id) where priority > 0;

-- name: drop
drop index if exists {schema}.kombu_mail_queue_id_priority_mail_id_idx;
