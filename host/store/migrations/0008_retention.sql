-- How long the ledger and its contents are kept.

-- Up to which message of a tenant contents were looked at for purging.
create table content_seen (
  tenant_id uuid not null,
  seen      uuid not null,
  constraint content_seen_pkey primary key (tenant_id)
);
select angarium_isolate('content_seen');
grant select, insert, update, delete on content_seen to angarium_worker;

-- Messages that had not ended when it was their time: they are looked at again.
create table content_open (
  tenant_id     uuid not null,
  message_id    uuid not null,
  remembered_at timestamptz not null default now(),
  constraint content_open_pkey primary key (tenant_id, message_id)
);
select angarium_isolate('content_open');
grant select, insert, update, delete on content_open to angarium_worker;

-- Whether all facts of a week's messages are in the roll-ups.
create function angarium_week_is_folded(week text) returns boolean language sql stable as $$
  with span as (
    select angarium_uuid_at(begins) as first, angarium_uuid_at(begins + interval '7 days') as next, folded_to
    from stat_watermark, (select to_date(week, 'IYYY"w"IW')::timestamp at time zone 'UTC' as begins) as t
  )
  select not exists (select from message, span where id >= first and id < next and written_in >= folded_to)
    and not exists (select from attempt, span where delivery_id >= first and delivery_id < next and written_in >= folded_to)
    and not exists (
      select from transition, span where delivery_id >= first and delivery_id < next and written_in >= folded_to)
$$;

-- The tables of those weeks that end before `before`; not of a week in which something has not ended yet, is waited for,
-- or is not folded. The caller sees all tenants.
create function angarium_partitions_over(before timestamptz) returns table (parent text, week text)
  language plpgsql set search_path from current as $$
declare
  open boolean;
  begins timestamptz;
  first uuid;
  next uuid;
begin
  for week in
    select distinct substring(c.relname from '\d{4}w\d{2}$') from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = any (angarium_ledger_tables()::regclass[]) and c.relname ~ '_\d{4}w\d{2}$' order by 1
  loop
    begins := to_date(week, 'IYYY"w"IW')::timestamp at time zone 'UTC';
    exit when begins + interval '7 days' > before;
    -- Where the messages are gone, an earlier drop was broken off.
    if to_regclass(format('%I', 'message_' || week)) is not null then
      first := angarium_uuid_at(begins);
      next := angarium_uuid_at(begins + interval '7 days');
      open := not angarium_week_is_folded(week)
        or exists (select from delivery d where d.id >= first and d.id < next and d.state = 'queued')
        or exists (select from receipt_watch w where w.delivery_id >= first and w.delivery_id < next)
        or exists (select from message m where m.id >= first and m.id < next and not exists (
          select from delivery d where d.tenant_id = m.tenant_id and d.id = m.id));
      continue when open;
    end if;
    foreach parent in array angarium_ledger_tables() loop
      continue when to_regclass(format('%I', parent || '_' || week)) is null;
      return next;
    end loop;
  end loop;
end $$;
revoke execute on function angarium_partitions_over from public;
grant execute on function angarium_partitions_over to angarium_worker;

-- Drops one of them. One a transaction: a transaction that held one table's lock and waited for another's would be waited
-- for by those who write both.
create function angarium_partition_drop(parent text, week text) returns void
  language plpgsql security definer set search_path from current as $$
begin
  if parent <> all (angarium_ledger_tables())
      or week !~ '^\d{4}w\d{2}$'
      or (to_date(week, 'IYYY"w"IW') + 7)::timestamp at time zone 'UTC' > now() then
    raise exception '% of % is not a past week of the ledger', parent, week;
  end if;
  execute format('drop table if exists %I', parent || '_' || week);
end $$;
revoke execute on function angarium_partition_drop from public;
grant execute on function angarium_partition_drop to angarium_worker;
