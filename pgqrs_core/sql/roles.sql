-- The group roles of `pgqrs install --roles`.

-- name: roles_exist glance anyone
-- Whether roles were ever made for this schema: only then is there a table of them.
select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
               where n.nspname = %(schema)s and c.relname = 'roles');

-- name: create_roles
-- Which role is for what, so that queues that are created later are granted to the same.
create table if not exists {schema}.roles (duty text primary key, name text not null);

-- name: list_roles
-- Those that were made, by duty.
select duty, name from {schema}.roles;

-- name: record_role
insert into {schema}.roles (duty, name) values (%(duty)s, %(name)s);

-- name: known_roles anyone glance
-- Those of these names that the server has, and whether one is more than a group: it may log in, or may do anything.
select rolname::text, rolcanlogin or rolsuper or rolbypassrls from pg_catalog.pg_roles
where rolname = any (%(names)s::text[]);

-- name: acting_role anyone glance
-- The role that our tables belong to, if the session may act as it and does not yet, and whether the session is a superuser's.
-- A superuser is not made another one.
select o.rolname::text, u.rolsuper
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_roles o on o.oid = c.relowner join pg_catalog.pg_roles u on u.rolname = current_user
where n.nspname = %(schema)s and c.relname = 'queues' and o.rolname <> current_user and not o.rolsuper
  and pg_has_role(o.oid, case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end);

-- name: foreign_code anyone glance
-- Up to five pieces of code on our tables that run for whoever uses these, and that a role other than a superuser made or can
-- make call its own: triggers, rules, expressions of defaults, checks, indexes and policies, types, foreign tables in the place
-- of tables, tables elsewhere that ours reach, and functions that run with the rights of their caller. Of PostgreSQL's functions
-- those that can run a statement are volatile or stable, so of these only some are let pass.
with ours as (
  select c.oid, c.relname, c.relkind
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = %(schema)s and c.relkind not in ('S', 't', 'c')
), code as (
  select 'a rule on ' || o.relname as what, r.ev_action::text || coalesce(r.ev_qual::text, '') as tree
  from ours o join pg_catalog.pg_rewrite r on r.ev_class = o.oid
  union all
  select 'trigger ' || t.tgname || ' on ' || o.relname, t.tgqual::text
  from ours o join pg_catalog.pg_trigger t on t.tgrelid = o.oid where t.tgqual is not null
  union all
  select 'a default of ' || o.relname || '.' || a.attname, d.adbin::text
  from ours o join pg_catalog.pg_attrdef d on d.adrelid = o.oid
  join pg_catalog.pg_attribute a on a.attrelid = o.oid and a.attnum = d.adnum
  union all
  select 'constraint ' || k.conname || ' on ' || o.relname, k.conbin::text
  from ours o join pg_catalog.pg_constraint k on k.conrelid = o.oid where k.conbin is not null
  union all
  select 'index ' || o.relname, coalesce(i.indexprs::text, '') || coalesce(i.indpred::text, '')
  from ours o join pg_catalog.pg_index i on i.indexrelid = o.oid where i.indexprs is not null or i.indpred is not null
  union all
  select 'policy ' || p.polname || ' on ' || o.relname, coalesce(p.polqual::text, '') || coalesce(p.polwithcheck::text, '')
  from ours o join pg_catalog.pg_policy p on p.polrelid = o.oid
)
select what::text from (
  select 'trigger ' || t.tgname || ' on ' || o.relname as what
  from ours o join pg_catalog.pg_trigger t on t.tgrelid = o.oid join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_roles r on r.oid = p.proowner
  where not t.tgisinternal and not r.rolsuper
  union all
  select c.what from code c cross join lateral regexp_matches(c.tree, ':(?:funcid|opfuncid|hashfuncid|aggfnoid|winfnoid) (\d+)', 'g') m
  left join pg_catalog.pg_proc p on p.oid = m[1]::oid left join pg_catalog.pg_roles r on r.oid = p.proowner
  where m[1] <> '0' and (r.rolsuper is not true
    or p.oid < 16384 and p.provolatile <> 'i' and p.proname <> all ('{{now,statement_timestamp,clock_timestamp,nextval,
       timestamptz_pl_interval,timestamptz_mi_interval,pg_column_size}}'::name[]))
  union all
  select c.what from code c cross join lateral regexp_matches(c.tree, ':(?:resulttype|consttype|funcresulttype) (\d+)', 'g') m
  join pg_catalog.pg_type t on t.oid = m[1]::oid join pg_catalog.pg_roles r on r.oid = t.typowner
  where not r.rolsuper and t.typrelid = 0
  union all
  select 'the type of ' || o.relname || '.' || a.attname
  from ours o join pg_catalog.pg_attribute a on a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped
  join pg_catalog.pg_type t on t.oid = a.atttypid join pg_catalog.pg_roles r on r.oid = t.typowner
  where not r.rolsuper
  union all
  select 'foreign table ' || o.relname from ours o where o.relkind in ('f', 'm')
  union all
  select 'what ' || o.relname || ' reaches: ' || d.refobjid::regclass::text
  from ours o join pg_catalog.pg_rewrite r on r.ev_class = o.oid
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = r.oid
    and d.refclassid = 'pg_catalog.pg_class'::regclass
  where d.refobjid not in (select oid from ours)
  union all
  select 'foreign key ' || k.conname || ' of ' || k.conrelid::regclass::text
  from ours o join pg_catalog.pg_constraint k on k.confrelid = o.oid and k.contype = 'f'
  where k.conrelid not in (select oid from ours)
  union all
  select 'a child of ' || o.relname || ': ' || i.inhrelid::regclass::text
  from ours o join pg_catalog.pg_inherits i on i.inhparent = o.oid where i.inhrelid not in (select oid from ours)
  union all
  select 'function ' || p.oid::regprocedure::text
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  join pg_catalog.pg_roles r on r.oid = p.proowner
  where n.nspname = %(schema)s and not p.prosecdef and not r.rolsuper
) found group by what order by what limit 5;

-- name: may_create_roles login anyone glance
-- Who we are, and whether we may make roles.
select current_user::text, rolsuper or rolcreaterole from pg_catalog.pg_roles where rolname = current_user;

-- name: create_role login
-- Without a password, and nobody can log in as it: it is there to be granted.
create role {role} nologin;

-- name: has_role login
-- Whether what belongs to a role is ours, too.
select pg_has_role(%(role)s, 'usage');

-- name: join_role login
-- Whoever hands tables over to a role must have it.
grant {role} to current_user;

-- name: inherits anyone glance
-- Whether a role has the rights of the roles that are granted to it at once, and the server's version as a number.
select rolinherit, current_setting('server_version_num')::int from pg_catalog.pg_roles where rolname = %(role)s;

-- name: add_member login
-- Who owned the tables keeps all rights on them.
grant {admin} to {owner};

-- name: add_member_inherit login
-- The same for a role that does not inherit by itself; from PostgreSQL 16 on.
grant {admin} to {owner} with inherit true;

-- name: open_schema login
-- An owner needs to create in it to be handed a table.
grant usage on schema {schema} to {producer}, {consumer}, {observer}, {admin};
grant create on schema {schema} to {admin};

-- name: tables_owner login anyone glance
-- Whom our tables belong to, which roles for duties there are if that is the administrators', and whether the session's role
-- monitors servers. It asks the catalogue alone, so every role may ask.
select o.owner, array(
  select r.rolname::text from pg_catalog.pg_roles r
  where right(o.owner, 6) = '_admin' and r.rolname = any (
    select left(o.owner, -5) || duty from unnest('{{producer,consumer,observer,admin}}'::text[]) d(duty))),
  pg_has_role('pg_read_all_stats', 'member')
from (
  select pg_get_userbyid(c.relowner)::text as owner
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = %(schema)s and c.relname = 'queues'
) o;

-- name: not_theirs login anyone
-- Tables and views that are ours to hand over to a role and do not belong to it yet, with their owner, and whether the owner
-- would lose its rights: it is no superuser, and no member of the role.
select c.relname::text, r.rolname::text,
  not r.rolsuper and not coalesce((select pg_has_role(r.oid, a.oid, 'usage') from pg_catalog.pg_roles a
                                   where a.rolname = %(role)s), false)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace join pg_catalog.pg_roles r on r.oid = c.relowner
where n.nspname = %(schema)s and c.relkind in ('r', 'p', 'v') and r.rolname <> %(role)s and pg_has_role(c.relowner, 'usage');

-- name: hand_over login patient lock_timeout
-- Takes a lock on the table, for a moment.
alter table {schema}.{table} owner to {admin};

-- name: hand_over_function login patient lock_timeout
-- The function of a queue runs with the rights of its owner.
alter function {enqueue} owner to {admin};

-- name: server_number
-- The version as a number, 180000 for 18.
select current_setting('server_version_num')::int;

-- name: drop_role login
-- Refused while it owns anything, or may do anything, in any database.
drop role if exists {role};

-- name: close_schema login
-- A schema that stays, because others keep tables in it, is not the roles' any more.
revoke all on schema {schema} from {producer}, {consumer}, {observer}, {admin};
