-- What Dramatiq asks of a queue that other front ends do not.

-- name: counts observer bitmap
-- How many messages are ready, delayed, in flight and dead, counted one by one and at one moment. What has expired is
-- neither ready nor delayed; in flight and dead it counts as any other.
select count(*) filter (where lane > -100 and lease_until <= statement_timestamp()
                          and coalesce(due_at, 'epoch') <= statement_timestamp()
                          and (expires_at is null or expires_at > statement_timestamp())),
       count(*) filter (where lane > -100 and lease_until <= statement_timestamp()
                          and due_at > statement_timestamp()
                          and (expires_at is null or expires_at > statement_timestamp())),
       count(*) filter (where lane > -100 and lease_until > statement_timestamp()),
       count(*) filter (where lane = -100)
from {queue};

-- name: outstanding observer
-- Is any message ready, delayed or in flight? All in one look, so that none slips through from one state to another. And
-- since `since`, which died, and why? A message that expires while a consumer holds it is in flight until it is settled.
select exists (select from {queue} where lane > -100
                 and (expires_at is null or expires_at > statement_timestamp() or lease_until > statement_timestamp())),
  statement_timestamp(),
  (select coalesce(last_error, json_build_object())::text from {queue}
   where lane = -100 and due_at >= %(since)s::timestamptz order by due_at limit 1);

-- name: flush consumer patient
-- Remove every message, whatever its state; whoever holds one finds its lease lost.
delete from {queue} returning 1;
