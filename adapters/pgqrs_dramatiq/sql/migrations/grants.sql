-- What the roles of `pgqrs install --roles` may do with results and limits: see pgqrs_core/sql/migrations/grants.sql.

-- name: shared
-- A producer waits for results, and shares rate limits and barriers with all others; a consumer, which is a worker, stores
-- results and cleans up. An observer sees keys and counters, no results.
revoke all on {schema}.dramatiq_results, {schema}.dramatiq_limits, {schema}.dramatiq_waiters from public;
grant select on {schema}.dramatiq_results to {producer};
grant select, insert, update, delete on {schema}.dramatiq_limits, {schema}.dramatiq_waiters to {producer};
grant select, insert, update, delete on {schema}.dramatiq_results, {schema}.dramatiq_limits, {schema}.dramatiq_waiters
  to {consumer};
grant select (key, expires_at) on {schema}.dramatiq_results to {observer};
grant select on {schema}.dramatiq_limits to {observer};
