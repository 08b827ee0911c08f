-- What the roles of `pgqrs install --roles` may do with results: see pgqrs_core/sql/migrations/grants.sql.

-- name: shared
-- A producer waits for the results of its tasks, saves groups, and starts chords; it changes nothing that is there, but the
-- size of a chord that has none yet, and who waits. A consumer, which is a worker, stores and forgets results, completes
-- chords and cleans up. An observer sees names and states, no results and arguments.
revoke all on {schema}.celery_results, {schema}.celery_groups, {schema}.celery_chords, {schema}.celery_chord_parts,
  {schema}.celery_waiters, {schema}.celery_new_chords, {schema}.celery_ended_waits from public;
-- What earlier versions granted.
revoke all on {schema}.celery_results, {schema}.celery_groups, {schema}.celery_chords, {schema}.celery_chord_parts,
  {schema}.celery_waiters from {producer};
grant select (task_id, status, result, content_type, traceback, children, date_done, group_id, parent_id, name, args, kwargs,
  worker, retries, queue, stamps, expires_at) on {schema}.celery_results to {producer};
grant insert (group_id, result, content_type, expires_at),
  select (group_id, result, content_type, date_done, expires_at) on {schema}.celery_groups to {producer};
grant insert (group_id, header, content_type, expires_at), select (group_id, size, finished_at)
  on {schema}.celery_chords to {producer};
grant select (group_id), update (size, expires_at) on {schema}.celery_new_chords to {producer}, {consumer};
grant insert (task_id, channel, until), update (until), select (task_id, channel, until) on {schema}.celery_waiters
  to {producer};
grant select (task_id, channel), update (until) on {schema}.celery_ended_waits to {producer}, {consumer};
grant select, insert, update, delete on {schema}.celery_results, {schema}.celery_groups, {schema}.celery_chords,
  {schema}.celery_chord_parts, {schema}.celery_waiters to {consumer};
grant select (task_id, status, date_done, group_id, parent_id, name, worker, retries, queue, expires_at)
  on {schema}.celery_results to {observer};
grant select (group_id, date_done, expires_at) on {schema}.celery_groups to {observer};
grant select (group_id, size, added, done, claimed_until, finished_at, expires_at) on {schema}.celery_chords to {observer};
