-- The statements of the journal.

-- name: add
insert into {schema}.hello_journal (queue, outcome, count)
values (%(queue)s, %(outcome)s, %(count)s)
on conflict (queue, outcome) do update set count = hello_journal.count + excluded.count;

-- name: read
select queue, outcome, count from {schema}.hello_journal order by queue, outcome;
