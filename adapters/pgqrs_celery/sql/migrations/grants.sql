-- What the roles of `pgqrs install --roles` may do with results: see pgqrs_core/sql/migrations/grants.sql.

-- name: shared
-- A producer waits for the results of its tasks, forgets them, saves groups and starts chords; a consumer, which is a
-- worker, stores results, completes chords and cleans up. An observer sees names and states, no results and arguments.
revoke all on {schema}.celery_results, {schema}.celery_groups, {schema}.celery_chords, {schema}.celery_chord_parts,
  {schema}.celery_waiters from public;
grant select, delete on {schema}.celery_results to {producer};
grant select, insert, update, delete on {schema}.celery_groups, {schema}.celery_waiters to {producer};
grant select, insert, update on {schema}.celery_chords to {producer};
grant select (group_id), delete on {schema}.celery_chord_parts to {producer};
grant select, insert, update, delete on {schema}.celery_results, {schema}.celery_groups, {schema}.celery_chords,
  {schema}.celery_chord_parts, {schema}.celery_waiters to {consumer};
grant select (task_id, status, date_done, group_id, parent_id, name, worker, retries, queue, expires_at)
  on {schema}.celery_results to {observer};
grant select (group_id, date_done, expires_at) on {schema}.celery_groups to {observer};
grant select (group_id, size, added, done, claimed_until, finished_at, expires_at) on {schema}.celery_chords to {observer};
