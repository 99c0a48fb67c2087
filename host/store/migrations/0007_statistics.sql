-- Statistics from the ledger itself: what is counted is read from the rows that are written anyway.
--
-- Each fact (a message, an attempt, a transition) carries the number of the transaction that wrote it. One node at a time
-- folds the facts below a watermark into `stat_rollup`; a read takes the roll-ups and the facts from the watermark on, in
-- one statement. The watermark never passes the oldest open transaction, so no fact can still appear behind it.

-- What a group lacks is the zero UUID, 0 or an empty text, so that a key has no nulls. `kind` says what is counted, and
-- `word` which of them:
--   message   accepted or further   at: the minute of its acceptance; further legs are counted apart
--   delivery  a state that is an end   at: the minute of its message's acceptance; a retry by hand takes one back
--   attempt   a disposition            at: the minute in which it ended
create table stat_rollup (
  tenant_id       uuid not null,
  grain           text not null,
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
  -- Attempts that failed for what the message, its recipient or the gateway did wrong: a connection's health leaves them
  -- out.
  excused         bigint not null default 0,
  -- How many took how long: logarithmic steps.
  latency         integer[] not null,
  constraint stat_rollup_pkey primary key (tenant_id, grain, at, kind, word, channel, connection_id, provider, route_id,
    route_version, code, trigger, fallback_reason, currency),
  constraint stat_rollup_grain check (grain in ('minute', 'hour', 'day'))
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
-- Minutes and hours are forgotten by age.
create index stat_rollup_age on stat_rollup (grain, at);
select angarium_isolate('stat_rollup');
grant select on stat_rollup to angarium_app;
grant select, insert, update, delete on stat_rollup to angarium_worker;

-- The last attempt through a connection that was not accepted; the attempt itself has the reason.
create table connection_failure (
  tenant_id     uuid not null,
  connection_id uuid not null,
  at            timestamptz not null,
  delivery_id   uuid not null,
  number        integer not null,
  constraint connection_failure_pkey primary key (tenant_id, connection_id)
) with (fillfactor = 50);
select angarium_isolate('connection_failure');
grant select on connection_failure to angarium_app;
grant select, insert, update, delete on connection_failure to angarium_worker;

-- ── The watermark ───────────────────────────────────────────────────────────────────────────

-- One row. Facts with a lower number are in the roll-ups, all others are not.
create table stat_watermark (
  folded_to          bigint not null,
  -- What `angarium_transaction` adds to PostgreSQL's own number.
  transaction_offset bigint not null default 0
);
insert into stat_watermark (folded_to) values (pg_snapshot_xmin(pg_current_snapshot())::text::bigint);
grant select on stat_watermark to angarium_app;
grant select, update (folded_to) on stat_watermark to angarium_worker;

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

-- ── How facts are counted ───────────────────────────────────────────────────────────────────

-- The minute of an id's making.
create function angarium_uuid_minute(id uuid) returns timestamptz language sql immutable parallel safe
  as $$
    select to_timestamp(('x' || encode(substring(uuid_send(id) from 1 for 6), 'hex'))::bit(48)::bigint / 60000 * 60)
  $$;

-- The step of the histogram of latencies that this time falls into.
create function angarium_latency_step(started_at timestamptz, finished_at timestamptz) returns integer
  language sql immutable parallel safe
  as $$
    select case when finished_at >= started_at then least(91, 1 + floor(
      4 * ln(greatest(date_part('epoch', finished_at - started_at) / 0.000125, 0.9)) / ln(2.0::float8))::int) end
  $$;

-- A histogram with this many more of a step; a step that is null adds none.
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

-- The sum of two histograms. A loop: a query in its place took a hundred times as long.
create function angarium_latency_add(a integer[], b integer[]) returns integer[]
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
create aggregate angarium_latency_sum (integer[]) (
  sfunc = angarium_latency_add, stype = integer[], initcond = '{}', combinefunc = angarium_latency_add, parallel = safe
);
