-- safe: yes
--
-- Where the process runs that has a role, for people: `holder` is a random number. Null where an older version was elected.

-- name: shared
alter table {schema}.leaders add column host text, add column pid int;
