-- safe: yes
--
-- Results and rate limits of Dramatiq. Messages are in the core's queues. Block "shared" runs at the installation, block
-- "drop" when pgqrs is uninstalled.

-- name: shared
create table {schema}.dramatiq_results (
  key         text        primary key,  -- made by Dramatiq of namespace, queue, actor and message id
  result      bytea       not null,     -- as the encoder wrote it: a row is a result, even if it says None
  expires_at  timestamptz not null
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
comment on table {schema}.dramatiq_results is 'one row per Dramatiq message whose result is kept';
create index on {schema}.dramatiq_results (expires_at);

-- Counters of rate limiters and barriers, and the events that barriers publish. What has expired counts as absent.
create table {schema}.dramatiq_limits (
  key         text        primary key,
  value       bigint      not null,
  expires_at  timestamptz not null
) with (
  -- A counter is updated at each acquisition and release; its expiry is therefore in no index.
  fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000
);

-- Which process is to be told of which result or event. A hint: it may be lost (unlogged) or stale (until) without harm.
create unlogged table {schema}.dramatiq_waiters (
  key         text        not null,
  listener    int         not null,  -- random, below zero, one per process and kind: what it is notified by
  until       timestamptz not null,
  primary key (key, listener)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index on {schema}.dramatiq_waiters (listener);

-- name: drop
drop table {schema}.dramatiq_results, {schema}.dramatiq_limits, {schema}.dramatiq_waiters;
