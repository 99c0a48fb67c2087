-- Statistics from the ledger itself: what is counted is read from the rows that are written anyway.
--
-- Each fact carries the number of the transaction that wrote it. One node at a time folds the facts below a watermark
-- into `stat_rollup`; a read takes the roll-ups and the facts from the watermark on, in one statement. The watermark
-- never passes the oldest open transaction, so no fact can still appear behind it.

-- The number of the current transaction. `angarium_transactions_align` may replace it.
create function angarium_transaction() returns bigint language sql stable
  as $$ select pg_current_xact_id()::text::bigint $$;

-- ── Facts ───────────────────────────────────────────────────────────────────────────────────
-- Rows that are there already are in the roll-ups: they have no number.
alter table message add column written_in bigint;
alter table message alter column written_in set default angarium_transaction();
create index message_written_in on message (written_in);

alter table attempt add column written_in bigint,
  -- The end that it brought its delivery to; null where the delivery went on, or had ended before.
  add column ended text constraint attempt_ended_is_an_end check (ended in ('sent', 'delivered', 'failed', 'bounced',
    'expired', 'canceled', 'suppressed', 'unroutable', 'unknown')),
  -- It failed for what the message, its recipient or the gateway did wrong: it says nothing of the connection.
  add column excused boolean not null default false;
alter table attempt alter column written_in set default angarium_transaction();
create index attempt_written_in on attempt (written_in);

-- Changes of a delivery's state that no attempt made: by a receipt, by a person, or because another leg ended it; and
-- the beginning of each further leg. The other columns are those of the delivery's last attempt.
create table transition (
  tenant_id     uuid not null,
  delivery_id   uuid not null,
  written_in    bigint not null default angarium_transaction(),
  -- Null: a further leg begins.
  left_state    text,
  state         text not null constraint transition_state_is_known check (state in ('queued', 'sent', 'delivered',
                  'failed', 'bounced', 'expired', 'canceled', 'suppressed', 'unroutable', 'unknown')),
  channel       text not null,
  connection_id uuid,
  provider      text,
  route_id      uuid,
  route_version integer,
  unified_code  text
) partition by range (delivery_id);
create index transition_delivery on transition (tenant_id, delivery_id);
create index transition_written_in on transition (written_in);
create table transition_default partition of transition default;

create or replace function angarium_partitions_ensure(from_at timestamptz, until_at timestamptz) returns void
  language plpgsql security definer set search_path from current as $$
declare
  week timestamptz := date_trunc('week', from_at at time zone 'UTC') at time zone 'UTC';
  parent text;
  part text;
begin
  perform pg_advisory_xact_lock(hashtext('angarium_partitions'));
  while week <= until_at loop
    foreach parent in array array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt', 'transition'] loop
      part := format('%s_%s', parent, to_char(week at time zone 'UTC', 'IYYY"w"IW'));
      if to_regclass(format('%I', part)) is null then
        execute format('create table %I partition of %I for values from (%L) to (%L)',
          part, parent, angarium_uuid_at(week), angarium_uuid_at(week + interval '7 days'));
        execute format('alter table %I enable row level security', part);
        execute format('alter table %I force row level security', part);
      end if;
    end loop;
    week := week + interval '7 days';
  end loop;
end $$;

-- The weeks that the ledger has already.
do $$
declare
  week text;
  begins timestamptz;
begin
  for week in
    select substring(c.relname from '\d{4}w\d{2}$') from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'message'::regclass and c.relname ~ '_\d{4}w\d{2}$'
  loop
    begins := to_date(week, 'IYYY"w"IW')::timestamp at time zone 'UTC';
    execute format('create table %I partition of transition for values from (%L) to (%L)',
      'transition_' || week, angarium_uuid_at(begins), angarium_uuid_at(begins + interval '7 days'));
    execute format('alter table %I enable row level security', 'transition_' || week);
    execute format('alter table %I force row level security', 'transition_' || week);
  end loop;
end $$;

do $$
declare
  name text;
begin
  foreach name in array array['transition', 'transition_default'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
  end loop;
end $$;
grant select, insert on transition to angarium_app;
grant select, insert, update, delete on transition to angarium_worker;

-- ── The watermark ───────────────────────────────────────────────────────────────────────────
-- One row. Facts with a lower number are in the roll-ups, all others are not.
create table stat_watermark (
  folded_to          bigint not null,
  -- What `angarium_transaction` adds to PostgreSQL's own number.
  transaction_offset bigint not null default 0
);
-- A transaction that is open now may still write, once it has the lock.
insert into stat_watermark (folded_to) values (pg_snapshot_xmin(pg_current_snapshot())::text::bigint);
grant select on stat_watermark to angarium_app;
grant select, update (folded_to) on stat_watermark to angarium_worker;

-- Below it every transaction has ended.
create function angarium_transactions_ended() returns bigint language sql stable
  as $$ select pg_snapshot_xmin(pg_current_snapshot())::text::bigint + transaction_offset from stat_watermark $$;

-- Lets numbers go on from the watermark where PostgreSQL's own begin anew: after a dump was restored in another
-- cluster. Nothing may be written between the restoration and this.
create function angarium_transactions_align() returns boolean
  language plpgsql security definer set search_path from current as $$
declare
  mark stat_watermark;
  own bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
begin
  select * into mark from stat_watermark for update;
  if own + mark.transaction_offset >= mark.folded_to then
    return false;
  end if;
  execute format('create or replace function angarium_transaction() returns bigint language sql stable
    as $body$ select pg_current_xact_id()::text::bigint + %s $body$', mark.folded_to - own);
  update stat_watermark set transaction_offset = mark.folded_to - own;
  return true;
end $$;
revoke execute on function angarium_transactions_align from public;
grant execute on function angarium_transactions_align to angarium_worker;

-- ── What facts are counted by ───────────────────────────────────────────────────────────────
-- The minute of an id's making.
create function angarium_uuid_minute(id uuid) returns timestamptz language sql immutable parallel safe
  as $$
    select to_timestamp(('x' || encode(substring(uuid_send(id) from 1 for 6), 'hex'))::bit(48)::bigint / 60000 * 60)
  $$;

-- The step of the histogram of latencies (`domain/statistics.rs`) that this time falls into.
create function angarium_latency_step(started_at timestamptz, finished_at timestamptz) returns integer
  language sql immutable parallel safe
  as $$
    select case when finished_at >= started_at then least(91, 1 + floor(
      4 * ln(greatest(date_part('epoch', finished_at - started_at) / 0.000125, 0.9)) / ln(2.0::float8))::int) end
  $$;

-- A histogram of how many there are of each step; none are told by a step that is null.
create function angarium_latency_count(counts integer[], step integer, count bigint) returns integer[]
  language plpgsql immutable parallel safe as $$
begin
  if step is null then
    return counts;
  end if;
  if cardinality(counts) <= step then
    counts := counts || array_fill(0, array[step + 1 - cardinality(counts)]);
  end if;
  counts[step + 1] := counts[step + 1] + count;
  return counts;
end $$;
create aggregate angarium_latency_counts (step integer, count bigint) (
  sfunc = angarium_latency_count, stype = integer[], initcond = '{}'
);

-- A loop: the query that it was took a hundred times as long.
create or replace function angarium_latency_add(a integer[], b integer[]) returns integer[]
  language plpgsql immutable parallel safe as $$
begin
  if cardinality(a) < cardinality(b) then
    return angarium_latency_add(b, a);
  end if;
  for step in 1 .. cardinality(b) loop
    a[step] := a[step] + b[step];
  end loop;
  return a;
end $$;

-- ── What was appended until now ─────────────────────────────────────────────────────────────
-- Without FORCE the owner sees all rows.
alter table stat_delta no force row level security;
alter table stat_rollup no force row level security;
alter table connection_failure no force row level security;

insert into connection_failure as f (tenant_id, connection_id, at, delivery_id, number)
select distinct on (tenant_id, connection_id) tenant_id, connection_id, failed_at, failed_delivery, failed_number
from stat_delta where failed_at is not null order by tenant_id, connection_id, failed_at desc
on conflict (tenant_id, connection_id) do update
  set at = excluded.at, delivery_id = excluded.delivery_id, number = excluded.number
where f.at <= excluded.at;

insert into stat_rollup as r (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id,
  route_version, code, trigger, fallback_reason, currency, count, cost_micros, excused, latency)
select tenant_id, grain, date_trunc(grain, at, 'UTC'), kind, word, channel, connection_id, provider, route_id,
  route_version, code, trigger, fallback_reason, currency, sum(count), sum(cost_micros), sum(excused),
  angarium_latency_sum(latency)
from stat_delta cross join (values ('minute'), ('hour'), ('day')) as g (grain)
group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
on conflict (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id, route_version, code,
  trigger, fallback_reason, currency)
do update set count = r.count + excluded.count, cost_micros = r.cost_micros + excluded.cost_micros,
  excused = r.excused + excluded.excused, latency = angarium_latency_add(r.latency, excluded.latency);

alter table stat_rollup force row level security;
alter table connection_failure force row level security;
drop table stat_delta;

-- ── How long the ledger is kept ─────────────────────────────────────────────────────────────
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

-- The tables of those weeks that end before `before`, the messages' first; not of a week in which something has not
-- ended yet, is waited for, or is not folded. The caller sees all tenants.
create or replace function angarium_partitions_over(before timestamptz) returns table (parent text, week text)
  language plpgsql set search_path from current as $$
declare
  open boolean;
  begins timestamptz;
  first uuid;
  next uuid;
begin
  for week in
    select distinct substring(c.relname from '\d{4}w\d{2}$') from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = any (
        array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt', 'transition']::regclass[])
      and c.relname ~ '_\d{4}w\d{2}$' order by 1
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
    foreach parent in array array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt', 'transition'] loop
      continue when to_regclass(format('%I', parent || '_' || week)) is null;
      return next;
    end loop;
  end loop;
end $$;

create or replace function angarium_partition_drop(parent text, week text) returns void
  language plpgsql security definer set search_path from current as $$
begin
  if parent <> all (array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt', 'transition'])
      or week !~ '^\d{4}w\d{2}$'
      or (to_date(week, 'IYYY"w"IW') + 7)::timestamp at time zone 'UTC' > now() then
    raise exception '% of % is not a past week of the ledger', parent, week;
  end if;
  execute format('drop table if exists %I', parent || '_' || week);
end $$;
