-- safe: yes
--
-- The number and the name of a queue stand on its table as a comment: the name of the table need not be that of the queue, and a
-- restore may lose the row that says so. `pgqrs install --repair` reads it.

-- name: queue
-- Its lock stops a vacuum, and no program.
comment on table {queue} is {queue_label};
