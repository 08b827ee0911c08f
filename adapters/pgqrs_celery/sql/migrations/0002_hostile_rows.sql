-- safe: yes
--
-- Rows that a program with the rights of a producer may write cannot make the statements of others fail: processes are
-- notified by a channel of one form, and counts of chords have room for more. The tables are small, so their rows are
-- checked at once; a registration of another form is only a hint, and goes.

-- name: shared
delete from {schema}.celery_waiters where channel !~ '^pgqrs:celery:[0-9a-f]+$' or length(channel) <> 29;
alter table {schema}.celery_waiters
  add constraint celery_waiters_channel check (channel ~ '^pgqrs:celery:[0-9a-f]+$' and length(channel) = 29) not valid;
alter table {schema}.celery_waiters validate constraint celery_waiters_channel;
update {schema}.celery_chords
set size = least(greatest(size, 0), 1000000000), added = least(greatest(added, 0), 1000000000),
    done = least(greatest(done, 0), 1000000000)
where size not between 0 and 1000000000 or added not between 0 and 1000000000 or done not between 0 and 1000000000;
alter table {schema}.celery_chords add constraint celery_chords_counts
  check (size between 0 and 1000000000 and added between 0 and 1000000000 and done between 0 and 1000000000) not valid;
alter table {schema}.celery_chords validate constraint celery_chords_counts;
