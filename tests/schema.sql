table a_jobs
  message_id bigint not null
  priority smallint not null
  attempt integer not null
  enqueued_at timestamp with time zone not null
  archived_at timestamp with time zone not null default clock_timestamp()
  content_type text
  headers json
  body bytea not null
  CREATE INDEX a_jobs_archived_at_idx ON pgqrs.a_jobs USING brin (archived_at) WITH (autosummarize='on')
  CREATE UNIQUE INDEX a_jobs_pkey ON pgqrs.a_jobs USING btree (message_id, archived_at)

table idempotency_keys
  with autovacuum_vacuum_cost_delay=0
  with autovacuum_vacuum_scale_factor=0
  with autovacuum_vacuum_threshold=10000
  queue_id integer not null
  key_hash bytea not null
  message_id bigint not null
  expires_at timestamp with time zone not null
  is_new boolean not null default true
  CREATE INDEX idempotency_keys_expires_at_idx ON pgqrs.idempotency_keys USING btree (expires_at)
  CREATE UNIQUE INDEX idempotency_keys_pkey ON pgqrs.idempotency_keys USING btree (queue_id, key_hash)

unlogged table leaders
  role text not null
  holder bigint not null
  until timestamp with time zone not null
  host text
  pid integer
  CREATE UNIQUE INDEX leaders_pkey ON pgqrs.leaders USING btree (role)

table migrations
  component text not null
  version integer not null
  name text not null
  checksum text not null
  safe boolean not null
  applied_at timestamp with time zone not null default now()
  CREATE UNIQUE INDEX migrations_pkey ON pgqrs.migrations USING btree (component, version)

table q_jobs
  with autovacuum_analyze_threshold=2000000000
  with autovacuum_vacuum_cost_delay=0
  with autovacuum_vacuum_scale_factor=0
  with autovacuum_vacuum_threshold=2000
  with fillfactor=50
  with vacuum_truncate=off
  lane smallint not null
  priority smallint not null default 0
  attempt integer not null default 0
  message_id bigint not null identity a
  lease_until timestamp with time zone not null default '1970-01-01 00:00:00+00'::timestamp with time zone
  lease_token bigint not null default 0
  enqueued_at timestamp with time zone not null default statement_timestamp()
  due_at timestamp with time zone
  expires_at timestamp with time zone
  content_type text
  headers json
  last_error json
  body bytea not null
  CREATE INDEX q_jobs_expires_at_idx ON pgqrs.q_jobs USING btree (expires_at) WHERE (expires_at IS NOT NULL)
  CREATE INDEX q_jobs_lane_due_at_message_id_idx ON pgqrs.q_jobs USING btree (lane, due_at, message_id) WHERE (due_at IS NOT NULL)
  CREATE UNIQUE INDEX q_jobs_pkey ON pgqrs.q_jobs USING btree (lane, message_id)

table queues
  queue_id integer not null identity a
  name text not null
  table_suffix text not null
  options json not null
  paused_at timestamp with time zone
  created_at timestamp with time zone not null default now()
  schema_version integer not null default 2
  CREATE UNIQUE INDEX queues_name_key ON pgqrs.queues USING btree (name)
  CREATE UNIQUE INDEX queues_pkey ON pgqrs.queues USING btree (queue_id)
  CREATE UNIQUE INDEX queues_table_suffix_key ON pgqrs.queues USING btree (table_suffix)

unlogged table waiters
  with fillfactor=50
  queue_id integer not null
  consumer bigint not null
  until timestamp with time zone not null
  CREATE UNIQUE INDEX waiters_pkey ON pgqrs.waiters USING btree (queue_id, consumer)

view v_jobs
  message_id bigint, state text, priority smallint, attempt integer, enqueued_at timestamp with time zone, due_at timestamp with time zone, expires_at timestamp with time zone, lease_until timestamp with time zone, content_type text, headers json, last_error json, body text

function e_jobs(priorities smallint[], ats timestamp with time zone[], delays double precision[], ttls double precision[], content_types text[], headers text[], bodies bytea[], key_hashes bytea[])
  TABLE(message_id bigint, key_hash bytea)
  with the rights of its owner, search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, granted
