-- What the roles of `pgqrs install --roles` may do with results and limits: see pgqrs_core/sql/migrations/grants.sql.

-- name: shared
-- A producer waits for results, and sets the counters of the groups that it sends. A consumer, which is a worker, stores
-- results, changes counters and cleans up. An observer sees keys and counters, no results.
revoke all on {schema}.dramatiq_results, {schema}.dramatiq_limits, {schema}.dramatiq_waiters,
  {schema}.dramatiq_new_barriers, {schema}.dramatiq_ended_waits from public;
-- What earlier versions granted.
revoke all on {schema}.dramatiq_results, {schema}.dramatiq_limits, {schema}.dramatiq_waiters from {producer};
grant select (key, result, expires_at) on {schema}.dramatiq_results to {producer};
grant insert (key, value, expires_at) on {schema}.dramatiq_new_barriers to {producer};
grant insert (key, listener, until), update (until), select (key, listener, until) on {schema}.dramatiq_waiters
  to {producer};
grant select (key, listener), update (until) on {schema}.dramatiq_ended_waits to {producer}, {consumer};
grant select, insert, update, delete on {schema}.dramatiq_results, {schema}.dramatiq_limits, {schema}.dramatiq_waiters
  to {consumer};
grant insert (key, value, expires_at) on {schema}.dramatiq_new_barriers to {consumer};
grant select (key, expires_at) on {schema}.dramatiq_results to {observer};
grant select on {schema}.dramatiq_limits to {observer};
