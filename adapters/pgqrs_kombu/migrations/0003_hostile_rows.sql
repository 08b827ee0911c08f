-- safe: yes
--
-- A binding or a declaration that was written by other means cannot make the statements of others fail: patterns are of the
-- form that `pattern_of` writes, and times are within the range of declarations. A row that breaks these rules is mended: a
-- binding without a pattern matches nothing, and a time that is out of range is left out.

-- name: shared
update {schema}.kombu_bindings set pattern = null
where pattern !~ '^\^\(\?:(\[\^\.\]\*\\\.|\(\?:\[\^\.\]\*\\\.\)\*|([^][()\x7b\x7d?*+|^$\\.]|\\[^[:alnum:]])*\\\.)*\)\$$';
alter table {schema}.kombu_bindings add constraint kombu_bindings_pattern check (pattern ~
  '^\^\(\?:(\[\^\.\]\*\\\.|\(\?:\[\^\.\]\*\\\.\)\*|([^][()\x7b\x7d?*+|^$\\.]|\\[^[:alnum:]])*\\\.)*\)\$$') not valid;
alter table {schema}.kombu_bindings validate constraint kombu_bindings_pattern;
update {schema}.kombu_queues set message_ttl = null where message_ttl not between 0 and 1e9;
update {schema}.kombu_queues set expires = case when ephemeral then 60 end where expires not between 0 and 1e9;
alter table {schema}.kombu_queues add constraint kombu_queues_times
  check (message_ttl between 0 and 1e9 and expires between 0 and 1e9) not valid;
alter table {schema}.kombu_queues validate constraint kombu_queues_times;
