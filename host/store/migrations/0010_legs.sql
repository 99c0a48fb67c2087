-- A message may name several channels: each is a leg, and a leg is a delivery. Leg n has the message's UUID with n in
-- its lowest four bits, which are zero in a message's own.

-- How its channels follow each other, as JSON, for a message that names several: `domain/legs.rs`. The content of the
-- second channel and of those after it is in `body`, which a purge takes away; this stays.
alter table message add column legs jsonb;
-- What its legs come to together; null while it is open, and for a message with one channel, whose delivery says it.
alter table message add column state text check (state in ('sent', 'delivered', 'failed', 'bounced', 'expired',
  'canceled', 'suppressed', 'unroutable', 'unknown'));
alter table message add check (state is null or legs is not null);

-- When a leg began; null for the delivery of a message with one channel. The row of a leg is written when it begins.
alter table delivery add column begun_at timestamptz;
-- Why it began, if another leg did before it.
alter table delivery add column begun_by text check (begun_by in ('channel_failed', 'no_receipt'));
-- Until when a receipt is waited for before the next leg begins.
alter table delivery add column receipt_until timestamptz;
alter table delivery add check (begun_at is not null or (begun_by is null and receipt_until is null));

-- The legs whose receipt is waited for.
create table receipt_watch (
  tenant_id   uuid not null,
  delivery_id uuid not null,
  message_id  uuid not null,
  due_at      timestamptz not null,
  primary key (tenant_id, delivery_id)
);
create index receipt_watch_due on receipt_watch (due_at);

alter table receipt_watch enable row level security;
alter table receipt_watch force row level security;
create policy tenant_rows on receipt_watch to angarium_app
  using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant());
create policy worker_rows on receipt_watch to angarium_worker using (true) with check (true);
grant select, insert, update, delete on receipt_watch to angarium_app, angarium_worker;
grant update (state) on message to angarium_app;

-- The channel of a message's leg.
create function angarium_leg_channel(legs jsonb, channel text, delivery_id uuid) returns text
  language sql immutable parallel safe
  as $$
    select coalesce(legs -> 'legs' -> ('x' || right(delivery_id::text, 1))::bit(4)::int ->> 'channel', channel)
  $$;

-- The last id that a leg of this message could have.
create function angarium_last_leg(message_id uuid) returns uuid language sql immutable parallel safe
  as $$ select (left(message_id::text, 35) || 'f')::uuid $$;

-- Whether what this leg came to is the message's own end, so that a person has to look at it: not where another channel
-- followed, or served. It is so for the delivery of a message with one channel.
create function angarium_leg_counts(tenant uuid, leg uuid, message uuid, begun_at timestamptz) returns boolean
  language sql stable parallel safe
  as $$
    select begun_at is null or exists (
      select from message m where m.tenant_id = tenant and m.id = message and (m.legs ->> 'mode' = 'all' or (
        m.state in ('failed', 'bounced', 'expired', 'unroutable', 'unknown') and not exists (
          select from delivery later
          where later.tenant_id = tenant and later.id > leg and later.id <= angarium_last_leg(message)))))
  $$;

-- As before; and not while a receipt is waited for, since another leg may have to follow.
create or replace function angarium_partitions_over(before timestamptz) returns table (parent text, week text)
  language plpgsql security definer set search_path from current as $$
declare
  open boolean;
  begins timestamptz;
begin
  for week in
    select distinct substring(c.relname from '\d{4}w\d{2}$') from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = any (array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt']::regclass[])
      and c.relname ~ '_\d{4}w\d{2}$' order by 1
  loop
    begins := to_date(week, 'IYYY"w"IW')::timestamp at time zone 'UTC';
    exit when begins + interval '7 days' > before;
    -- Where the messages are gone, an earlier drop was broken off.
    if to_regclass(format('%I', 'message_' || week)) is not null then
      execute format(
        'select exists (select from %I where state = ''queued'')
           or exists (select from receipt_watch where delivery_id >= $1 and delivery_id < $2)
           or exists (select from %I m where not exists (
             select from %I d where d.tenant_id = m.tenant_id and d.id = m.id))',
        'delivery_' || week, 'message_' || week, 'delivery_' || week)
        using angarium_uuid_at(begins), angarium_uuid_at(begins + interval '7 days') into open;
      continue when open;
    end if;
    foreach parent in array array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt'] loop
      continue when to_regclass(format('%I', parent || '_' || week)) is null;
      return next;
    end loop;
  end loop;
end $$;
