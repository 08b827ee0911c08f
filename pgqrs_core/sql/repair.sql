-- Finding and mending what a restore, or something else than pgqrs, has left incomplete: see operations/damage.py.

-- name: relations anyone glance
-- Every table and view of the schema, with its kind and the comment on it, and the functions by which queues are written to.
select c.relname::text, c.relkind::text, coalesce(obj_description(c.oid, 'pg_class'), '')
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = %(schema)s and c.relkind in ('r', 'p', 'v')
union all
select p.proname::text, 'f', ''
from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = %(schema)s and p.prosrc ~ 'idempotency_keys';

-- name: recorded_steps anyone glance
-- Which steps of which components are recorded as applied.
select component, array_agg(version order by version) from {schema}.migrations group by component;

-- name: queue_versions anyone glance
-- How far the tables of each queue are. Before step 3 there is no such column, and the name means the default: two steps.
select q.queue_id, (select schema_version from (select q.*) r)
from (values (2)) d(schema_version) cross join {schema}.queues q;

-- name: table_facts anyone glance
-- What these tables are made of: columns, constraints and indexes, sorted, without the names of the latter two.
select c.relname::text, array(
  select f.fact from (
    select 'column ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
           || case when a.attnotnull then ' not null' else '' end
           || case a.attidentity when 'a' then ' identity' when 'd' then ' identity by default' else '' end
    from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    union all
    select regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '')
    from pg_catalog.pg_constraint k where k.conrelid = c.oid and k.contype in ('p', 'u', 'c')
    union all
    select 'index by ' || m.amname || ' on '
           || (select string_agg(pg_get_indexdef(i.indexrelid, p, false), ', ' order by p)
               from generate_series(1, i.indnatts) p)
           || coalesce(' where ' || pg_get_expr(i.indpred, i.indrelid), '')
    from pg_catalog.pg_index i
    join pg_catalog.pg_class x on x.oid = i.indexrelid join pg_catalog.pg_am m on m.oid = x.relam
    where i.indrelid = c.oid and i.indisvalid
  ) f(fact) order by f.fact collate "C")
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = %(schema)s and c.relname = any (%(tables)s::text[]) and c.relkind = 'r';

-- name: holds_rows
-- Whether there is anything in a table.
select exists (select from {schema}.{table});

-- name: drop_table patient lock_timeout
-- A table that no queue has.
drop table {schema}.{table};

-- name: drop_view patient lock_timeout
-- One of a table that no queue has, or of a component.
drop view if exists {schema}.{table};

-- name: create_scratch
-- Where tables are made that are then moved to where they are missing.
create schema {scratch};

-- name: move_table lock_timeout
alter table {scratch}.{table} set schema {schema};

-- name: drop_scratch
drop schema {scratch} cascade;

-- name: drop_function patient lock_timeout
-- One of a queue that has no row and no table.
drop function {schema}.{table};

-- name: adopt_queue
-- The row of a queue whose tables are there, with its old number; nothing comes back where another queue has that.
insert into {schema}.queues (queue_id, name, table_suffix, options, schema_version)
overriding system value
select %(number)s::int, %(name)s, %(suffix)s, %(options)s::json, %(version)s
where not exists (select from {schema}.queues where queue_id = %(number)s::int)
returning queue_id, name, table_suffix, options::text, paused_at, created_at;

-- name: label_queue
-- As the migration 0006 does.
comment on table {queue} is {queue_label};

-- name: pass_archived_ids
-- Let the ids that are given next be beyond those in the archive.
select setval({sequence_name}::regclass, max(message_id)) from {archive}
having max(message_id) >= (select last_value from {sequence});

-- name: pass_keyed_ids
-- The same for those that idempotency keys name.
select setval({sequence_name}::regclass, max(message_id)) from {schema}.idempotency_keys where queue_id = {queue_id}
having max(message_id) >= (select last_value from {sequence});

-- name: pass_queue_numbers
-- Let the numbers that are given next be beyond those that queues have, or had: keys of deleted queues go by them.
select setval(pg_get_serial_sequence(quote_ident(%(schema)s::text) || '.queues', 'queue_id'), m.highest)
from (select greatest((select max(queue_id) from {schema}.queues),
                      (select max(queue_id) from {schema}.idempotency_keys)) as highest) m
where m.highest > (select coalesce(last_value, 0) from pg_catalog.pg_sequences
                   where schemaname = %(schema)s and sequencename = 'queues_queue_id_seq');
