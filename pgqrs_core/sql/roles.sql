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

-- name: known_roles
-- Those of these names that the server has, and whether one is more than a group: it may log in, or may do anything.
select rolname::text, rolcanlogin or rolsuper or rolbypassrls from pg_catalog.pg_roles
where rolname = any (%(names)s::text[]);

-- name: may_create_roles anyone glance
-- Who we are, and whether we may make roles.
select current_user::text, rolsuper or rolcreaterole from pg_catalog.pg_roles where rolname = current_user;

-- name: create_role
-- Without a password, and nobody can log in as it: it is there to be granted.
create role {role} nologin;

-- name: has_role
-- Whether what belongs to a role is ours, too.
select pg_has_role(%(role)s, 'usage');

-- name: join_role
-- Whoever hands tables over to a role must have it.
grant {role} to current_user;

-- name: inherits anyone glance
-- Whether a role has the rights of the roles that are granted to it at once, and the server's version as a number.
select rolinherit, current_setting('server_version_num')::int from pg_catalog.pg_roles where rolname = %(role)s;

-- name: add_member
-- Who owned the tables keeps all rights on them.
grant {admin} to {owner};

-- name: add_member_inherit
-- The same for a role that does not inherit by itself; from PostgreSQL 16 on.
grant {admin} to {owner} with inherit true;

-- name: open_schema
-- An owner needs this to be handed a table.
grant usage, create on schema {schema} to {admin};

-- name: tables_owner anyone glance
-- Whom our tables belong to, and which roles for duties there are if that is the administrators'. It asks the catalogue alone,
-- so every role may ask.
select o.owner, array(
  select r.rolname::text from pg_catalog.pg_roles r
  where right(o.owner, 6) = '_admin' and r.rolname = any (
    select left(o.owner, -5) || duty from unnest('{{producer,consumer,observer,admin}}'::text[]) d(duty)))
from (
  select pg_get_userbyid(c.relowner)::text as owner
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = %(schema)s and c.relname = 'queues'
) o;

-- name: not_theirs anyone
-- Tables and views that are ours to hand over to a role and do not belong to it yet, with their owner, and whether the owner
-- would lose its rights: it is no superuser, and no member of the role.
select c.relname::text, r.rolname::text,
  not r.rolsuper and not coalesce((select pg_has_role(r.oid, a.oid, 'usage') from pg_catalog.pg_roles a
                                   where a.rolname = %(role)s), false)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace join pg_catalog.pg_roles r on r.oid = c.relowner
where n.nspname = %(schema)s and c.relkind in ('r', 'p', 'v') and r.rolname <> %(role)s and pg_has_role(c.relowner, 'usage');

-- name: hand_over patient lock_timeout
-- Takes a lock on the table, for a moment.
alter table {schema}.{table} owner to {admin};

-- name: server_number
-- The version as a number, 180000 for 18.
select current_setting('server_version_num')::int;

-- name: drop_role
-- Refused while it owns anything, or may do anything, in any database.
drop role if exists {role};

-- name: close_schema
-- A schema that stays, because others keep tables in it, is not the roles' any more.
revoke all on schema {schema} from {producer}, {consumer}, {observer}, {admin};
