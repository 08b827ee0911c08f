-- safe: yes
--
-- Views by which a producer gets less than the tables: see grants.sql.

-- name: shared
-- Chords whose size was not said yet. A producer says it, once; it can change no chord that is further.
create view {schema}.celery_new_chords as
select group_id, size, expires_at from {schema}.celery_chords where size is null and finished_at is null;

-- An update of this view deletes the row. PostgreSQL lets a role that may DELETE lock the whole table, and with it everybody
-- who stores a result; a role that may UPDATE a column may not.
create view {schema}.celery_ended_waits as
select task_id, channel, until, ctid as place from {schema}.celery_waiters;
create rule ended as on update to {schema}.celery_ended_waits do instead
  delete from {schema}.celery_waiters where ctid = old.place;

-- name: drop
drop view if exists {schema}.celery_new_chords, {schema}.celery_ended_waits;
