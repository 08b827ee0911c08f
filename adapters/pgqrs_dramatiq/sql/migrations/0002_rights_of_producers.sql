-- safe: yes
--
-- Views by which a producer gets less than the tables: see grants.sql.

-- name: shared
-- The counter of a group's callbacks, which is set by the program that sends the group. Rate limiters have names that
-- people chose; a producer can neither hold nor release one of these.
create view {schema}.dramatiq_new_barriers as
select key, value, expires_at from {schema}.dramatiq_limits
where key ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' and value between 1 and 1000000000 and isfinite(expires_at)
with check option;

-- An update of this view deletes the row. PostgreSQL lets a role that may DELETE lock the whole table, and with it everybody
-- who stores a result; a role that may UPDATE a column may not.
create view {schema}.dramatiq_ended_waits as
select key, listener, until, ctid as place from {schema}.dramatiq_waiters;
create rule ended as on update to {schema}.dramatiq_ended_waits do instead
  delete from {schema}.dramatiq_waiters where ctid = old.place;

-- name: drop
drop view if exists {schema}.dramatiq_new_barriers, {schema}.dramatiq_ended_waits;
