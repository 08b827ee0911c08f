-- safe: yes
--
-- Archives get a key, without which a publication of all tables refuses to remove anything from them. And it is noted how far
-- the tables of each queue are: they are brought up to date in a transaction of their own, one queue after another.

-- name: shared
-- Constant, so that no row is written. The queues that are here had the steps 1 and 2.
alter table {schema}.queues add column schema_version int not null default 2;

-- name: archive
-- A small archive gets a primary key, which takes the place of the index on message_id. By the time in it an id may come a
-- second time: after an asynchronous failover PostgreSQL can give one again, and archiving must not fail. A large archive
-- would be locked while the key is built, so there the whole row stands for it, which takes no time. docs/sql.md says how
-- to build the key there without a lock.
do $pgqrs$
declare
  old text;
begin
  if pg_relation_size({archive_name}::regclass) > 16 * 1024 * 1024 then
    alter table {archive} replica identity full;
    return;
  end if;
  -- By the clock: of two messages with one id in a batch each has its own time.
  alter table {archive} alter column archived_at set default clock_timestamp();
  alter table {archive} add primary key (message_id, archived_at);
  select i.indexrelid::regclass::text into strict old
  from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
  where i.indrelid = {archive_name}::regclass and i.indnatts = 1 and a.attname = 'message_id';
  execute 'drop index ' || old;
exception when unique_violation or no_data_found then
  alter table {archive} replica identity full;
end
$pgqrs$;
