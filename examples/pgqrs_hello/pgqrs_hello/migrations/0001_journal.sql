-- safe: yes
--
-- How often each thing became of a queue's messages.

-- name: shared
create table {schema}.hello_journal (
  queue    text   not null,
  outcome  text   not null,
  count    bigint not null,
  primary key (queue, outcome)
);

-- name: drop
drop table if exists {schema}.hello_journal;
