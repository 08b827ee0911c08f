-- safe: yes
--
-- Results, groups and chords of Celery. Block "shared" runs at the installation, block "drop" when pgqrs is uninstalled.

-- name: shared
create table {schema}.celery_results (
  task_id       text        primary key,
  status        text        not null,
  result        bytea,                 -- encoded as content_type says; compressed results say so themselves
  content_type  text        not null,  -- of result, children, args, kwargs and stamps
  traceback     text,
  children      bytea,
  date_done     timestamptz,           -- null until the task is done
  group_id      text,
  parent_id     text,
  name          text,                  -- from here on only with result_extended
  args          bytea,
  kwargs        bytea,
  worker        text,
  retries       int,
  queue         text,
  stamps        bytea,
  expires_at    timestamptz            -- null: kept until forgotten
) with (
  -- Most results are written once; those that were STARTED or retried before find room for their second version.
  fillfactor = 85,
  autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05
);
comment on table {schema}.celery_results is 'one row per Celery task whose result or state is kept';
create index on {schema}.celery_results (expires_at) where expires_at is not null;

-- Saved GroupResults.
create table {schema}.celery_groups (
  group_id      text        primary key,
  result        bytea       not null,
  content_type  text        not null,
  date_done     timestamptz not null default statement_timestamp(),
  expires_at    timestamptz
);
create index on {schema}.celery_groups (expires_at) where expires_at is not null;

-- Chords on their way, and for a while those that are over, so that a header task that runs again changes nothing.
create table {schema}.celery_chords (
  group_id      text        primary key,
  size          int,                   -- header tasks; null until the last one is being sent
  added         int         not null default 0,  -- header tasks added while it ran
  done          int         not null default 0,  -- header tasks that returned
  header        bytea,                 -- the structure of the header's results, if groups are nested in it
  content_type  text,                  -- of the header
  body          bytea,                 -- what to publish, if whoever claimed the chord does not come to it
  body_type     text,                  -- its content type
  claim         bigint,                -- random: who publishes the body
  claimed_until timestamptz,           -- until when; afterwards anybody may claim it anew
  finished_at   timestamptz,           -- the body was published, or its failure was stored
  expires_at    timestamptz
) with (
  -- Each returning task updates this one row, in no index.
  fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05
);
create index on {schema}.celery_chords (claimed_until) where claimed_until is not null;
create index on {schema}.celery_chords (expires_at) where expires_at is not null;

-- What the header tasks of unfinished chords returned, each counted once however often it runs.
create table {schema}.celery_chord_parts (
  group_id      text        not null,
  place         int         not null,  -- in the header
  task_id       text        not null,
  number        bigint      not null generated always as identity,  -- the order of arrival
  status        text        not null,
  result        bytea,
  content_type  text        not null,
  primary key (group_id, place, task_id)
) with (autovacuum_vacuum_scale_factor = 0.05);

-- Which process is to be told of which result. A hint: it may be lost (unlogged) or stale (until) without harm.
create unlogged table {schema}.celery_waiters (
  task_id       text        not null,
  channel       text        not null,  -- one per process
  until         timestamptz not null,
  primary key (task_id, channel)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- name: drop
drop table {schema}.celery_results, {schema}.celery_groups, {schema}.celery_chords, {schema}.celery_chord_parts,
  {schema}.celery_waiters;
