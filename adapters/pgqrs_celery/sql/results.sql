-- Results and groups: storing, reading, waiting, cleaning up. What has expired is gone, removed already or not.

-- name: store_result consumer
-- Store the state of a task and notify the processes that wait for it. A SUCCESS is never overwritten. A row that is
-- written again keeps its expiry if that leaves it between one and 1.2 times its time to live: then its new version is in
-- no index. A task that is not done yet is given 1.2 times (`slack`) to begin with. No row of celery_waiters can make this
-- statement fail or take long: a notification goes to channels of the known form only, and to a thousand of them at most.
with stored as (
  insert into {schema}.celery_results as r (
    task_id, status, result, content_type, traceback, children, date_done, group_id, parent_id,
    name, args, kwargs, worker, retries, queue, stamps, expires_at)
  values (
    %(task_id)s, %(status)s, %(result)s, %(content_type)s, %(traceback)s, %(children)s, %(date_done)s, %(group_id)s,
    %(parent_id)s, %(name)s, %(args)s, %(kwargs)s, %(worker)s, %(retries)s, %(queue)s, %(stamps)s,
    statement_timestamp() + %(expires)s::float8 * %(slack)s::float8 * interval '1 second')
  on conflict (task_id) do update set
    status = excluded.status, result = excluded.result, content_type = excluded.content_type,
    traceback = excluded.traceback, children = excluded.children, date_done = excluded.date_done,
    group_id = excluded.group_id, parent_id = excluded.parent_id, name = excluded.name, args = excluded.args,
    kwargs = excluded.kwargs, worker = excluded.worker, retries = excluded.retries, queue = excluded.queue,
    stamps = coalesce(excluded.stamps, r.stamps),
    expires_at = case
      when r.expires_at between statement_timestamp() + %(expires)s::float8 * interval '1 second'
        and statement_timestamp() + %(expires)s::float8 * interval '1.2 second' then r.expires_at
      else excluded.expires_at end
  where r.status <> 'SUCCESS' or r.expires_at <= statement_timestamp()
  returning r.task_id
)
select pg_notify(w.channel, w.task_id) from {schema}.celery_waiters w
where w.task_id = %(task_id)s and w.until > statement_timestamp() and w.channel ~ '^pgqrs:celery:[0-9a-f]+$'
  and length(w.channel) = 29 and exists (select from stored)
limit 1000;

-- name: read_results producer glance
-- Those of `ids` that are there, in no order.
select r.task_id, r.status, r.result, r.content_type, r.traceback, r.children, r.date_done, r.group_id, r.parent_id,
  r.name, r.args, r.kwargs, r.worker, r.retries, r.queue, r.stamps
from {schema}.celery_results r
where r.task_id = any (%(ids)s::text[]) and (r.expires_at is null or r.expires_at > statement_timestamp());

-- name: forget_result consumer
-- A task whose result is forgotten is pending, as one that nobody has heard of.
delete from {schema}.celery_results where task_id = %(task_id)s;

-- name: save_group producer
-- Keep the structure of a group's results. No row: there is one of this id.
insert into {schema}.celery_groups (group_id, result, content_type, expires_at)
values (%(group_id)s, %(result)s, %(content_type)s,
  statement_timestamp() + %(expires)s::float8 * interval '1 second')
on conflict do nothing
returning true;

-- name: replace_group consumer
-- Saved again, it is replaced.
insert into {schema}.celery_groups as g (group_id, result, content_type, expires_at)
values (%(group_id)s, %(result)s, %(content_type)s,
  statement_timestamp() + %(expires)s::float8 * interval '1 second')
on conflict (group_id) do update set result = excluded.result, content_type = excluded.content_type,
  date_done = statement_timestamp(), expires_at = excluded.expires_at;

-- name: read_group producer glance
-- The structure of a group's results, as it was saved.
select result, content_type, date_done from {schema}.celery_groups
where group_id = %(group_id)s and (expires_at is null or expires_at > statement_timestamp());

-- name: delete_group consumer
-- Forget the structure; the results of the tasks stay.
delete from {schema}.celery_groups where group_id = %(group_id)s;

-- name: await_results producer
-- Ask to be told of `ids` on `channel` for the next `seconds`. Results that are being stored at this moment may miss
-- it, so whoever waits reads them again afterwards.
insert into {schema}.celery_waiters as w (task_id, channel, until)
select task_id, %(channel)s, statement_timestamp() + %(seconds)s::float8 * interval '1 second'
from unnest(%(ids)s::text[]) wanted(task_id)
on conflict (task_id, channel) do update set until = excluded.until;

-- name: await_no_more producer
-- Take back what `await_results` asked for: an update of this view deletes.
update {schema}.celery_ended_waits set until = null where task_id = any (%(ids)s::text[]) and channel = %(channel)s;

-- name: prune_waiters consumer
-- Remove up to `limit` rows of processes that died without saying so. One that another session holds stays.
with gone as materialized (
  select ctid as place from {schema}.celery_waiters
  where until < statement_timestamp() - interval '1 minute' limit %(limit)s for update skip locked
)
delete from {schema}.celery_waiters w where w.ctid = any (array(select place from gone)) returning 1;

-- name: prune_results consumer
-- Remove up to `limit` results that have expired.
with gone as materialized (
  select ctid as place from {schema}.celery_results
  where expires_at <= statement_timestamp() order by expires_at limit %(limit)s for update skip locked
)
delete from {schema}.celery_results r where r.ctid = any (array(select place from gone)) returning 1;

-- name: prune_groups consumer
-- Remove up to `limit` saved groups that have expired.
with gone as materialized (
  select ctid as place from {schema}.celery_groups
  where expires_at <= statement_timestamp() order by expires_at limit %(limit)s for update skip locked
)
delete from {schema}.celery_groups g where g.ctid = any (array(select place from gone)) returning 1;
