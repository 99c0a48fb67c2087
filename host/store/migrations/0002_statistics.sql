-- Statistics that agree with the ledger, and how long the ledger is kept.
--
-- Whoever writes an attempt, a state's end or an acceptance appends what it counts for to
-- `stat_delta` in the same transaction: nothing is updated, so nobody waits for anybody. A folder
-- moves the deltas into `stat_rollup`; who reads takes both in one statement.

-- One row for each group of a transaction. `kind` says what is counted and `word` which of them:
--   message   accepted              at: the minute of its acceptance
--   delivery  a state that is an end   at: the minute of its message's acceptance; a retry by hand takes one back
--   attempt   a disposition         at: the minute in which it ended
-- What a group lacks is the zero UUID, 0 or an empty text, so that a key has no nulls.
create table stat_delta (
  tenant_id       uuid not null,
  at              timestamptz not null,
  kind            text not null check (kind in ('message', 'delivery', 'attempt')),
  word            text not null,
  channel         text not null,
  connection_id   uuid not null default '00000000-0000-0000-0000-000000000000',
  provider        text not null default '',
  route_id        uuid not null default '00000000-0000-0000-0000-000000000000',
  route_version   integer not null default 0,
  code            text not null default '',
  trigger         text not null default '',
  fallback_reason text not null default '',
  currency        text not null default '',
  count           bigint not null,
  cost_micros     bigint not null default 0,
  -- How many took how long: logarithmic steps, see `domain/statistics.rs`.
  latency         integer[] not null default '{}',
  -- The group's last attempt that a provider did not accept.
  failed_at       timestamptz,
  failed_delivery uuid,
  failed_number   integer
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

create table stat_rollup (
  tenant_id       uuid not null,
  grain           text not null check (grain in ('minute', 'hour', 'day')),
  -- The bucket's beginning, in UTC.
  at              timestamptz not null,
  kind            text not null,
  word            text not null,
  channel         text not null,
  connection_id   uuid not null,
  provider        text not null,
  route_id        uuid not null,
  route_version   integer not null,
  code            text not null,
  trigger         text not null,
  fallback_reason text not null,
  currency        text not null,
  count           bigint not null,
  cost_micros     bigint not null,
  latency         integer[] not null,
  primary key (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id, route_version, code,
    trigger, fallback_reason, currency)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
-- What the housework forgets by age.
create index stat_rollup_age on stat_rollup (grain, at);

-- The last attempt through a connection that was not accepted; the attempt itself has the reason.
create table connection_failure (
  tenant_id     uuid not null,
  connection_id uuid not null,
  at            timestamptz not null,
  delivery_id   uuid not null,
  number        integer not null,
  primary key (tenant_id, connection_id)
) with (fillfactor = 50);

create function angarium_latency_add(a integer[], b integer[]) returns integer[]
  language sql immutable parallel safe
  as $$
    select case when a = '{}' then b when b = '{}' then a else
      array(select coalesce(t.x, 0) + coalesce(t.y, 0) from unnest(a, b) with ordinality as t (x, y, n) order by t.n)
    end
  $$;
create aggregate angarium_latency_sum (integer[]) (
  sfunc = angarium_latency_add, stype = integer[], initcond = '{}', combinefunc = angarium_latency_add, parallel = safe
);

-- ── How long things are kept ────────────────────────────────────────────────────────────────

-- Which of the configuration's retention classes.
alter table tenant add column retention_class text not null default 'default'
  check (retention_class ~ '^[a-z0-9][a-z0-9_-]{0,62}$');

-- Since then there is no recipient, content or attachment any more.
alter table message add column content_purged_at timestamptz;

-- Up to which message of a tenant content was looked at for purging, and which messages had not
-- ended then.
create table content_seen (
  tenant_id   uuid primary key,
  seen        uuid not null
);
create table content_open (
  tenant_id   uuid not null,
  message_id  uuid not null,
  remembered_at timestamptz not null default now(),
  primary key (tenant_id, message_id)
);

-- The tables of those weeks that end before `before`, the messages' first; not of a week in which
-- something has not ended yet.
create function angarium_partitions_over(before timestamptz) returns table (parent text, week text)
  language plpgsql security definer set search_path from current as $$
declare
  open boolean;
begin
  for week in
    select distinct substring(c.relname from '\d{4}w\d{2}$') from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = any (array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt']::regclass[])
      and c.relname ~ '_\d{4}w\d{2}$' order by 1
  loop
    exit when (to_date(week, 'IYYY"w"IW') + 7)::timestamp at time zone 'UTC' > before;
    -- Where the messages are gone, an earlier drop was broken off.
    if to_regclass(format('%I', 'message_' || week)) is not null then
      execute format(
        'select exists (select from %I where state = ''queued'')
           or exists (select from %I m where not exists (
             select from %I d where d.tenant_id = m.tenant_id and d.id = m.id))',
        'delivery_' || week, 'message_' || week, 'delivery_' || week) into open;
      continue when open;
    end if;
    foreach parent in array array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt'] loop
      continue when to_regclass(format('%I', parent || '_' || week)) is null;
      return next;
    end loop;
  end loop;
end $$;

-- Drops one of them. One a transaction: who held the lock of one table and waited for that of
-- another would be waited for by those who write both.
create function angarium_partition_drop(parent text, week text) returns void
  language plpgsql security definer set search_path from current as $$
begin
  if parent <> all (array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt']) or week !~ '^\d{4}w\d{2}$'
      or (to_date(week, 'IYYY"w"IW') + 7)::timestamp at time zone 'UTC' > now() then
    raise exception '% of % is not a past week of the ledger', parent, week;
  end if;
  execute format('drop table if exists %I', parent || '_' || week);
end $$;

-- ── Who may do what ─────────────────────────────────────────────────────────────────────────
do $$
declare
  name text;
begin
  foreach name in array array['stat_delta', 'stat_rollup', 'connection_failure', 'content_seen', 'content_open'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
  end loop;
end $$;

grant select, insert on stat_delta to angarium_app;
grant select on stat_rollup, connection_failure to angarium_app;
grant select, insert, update, delete on stat_delta, stat_rollup, connection_failure, content_seen, content_open
  to angarium_worker;
-- What a purge of content takes away, and nothing else.
grant update (recipient, body, content_purged_at) on message to angarium_app;
grant update (detail) on attempt to angarium_app;
grant update (data) on event to angarium_app;
grant delete on attachment to angarium_app;
grant execute on function angarium_partitions_over, angarium_partition_drop to angarium_worker;
revoke execute on function angarium_partitions_over, angarium_partition_drop from public;
