-- What providers' services say later of a delivery.

-- What a service's callback URL for a connection ends with: 256 random bits, so that nobody guesses
-- it. It selects tenant and connection before anything else is known of a request.
alter table connection add column callback_token text not null
  default replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
create unique index connection_callback_token on connection (callback_token);

-- What people did with it (read, clicked …), beside the state.
alter table delivery add column engagement text[];

-- How a receipt finds its delivery where it does not bring its id back. Only attempts that have an
-- external id pay for it.
create index attempt_external_id on attempt (tenant_id, external_id) where external_id is not null;

-- Every receipt of a delivery, once: a repetition has the same hash.
create table receipt (
  tenant_id     uuid not null,
  delivery_id   uuid not null,
  kind          text not null,
  hash          bytea not null check (octet_length(hash) = 32),
  connection_id uuid not null,
  external_id   text,
  recipient     text,
  -- By the service's clock.
  at            timestamptz,
  received_at   timestamptz not null,
  code          text not null,
  unified_code  text not null,
  message       text not null,
  -- JSON.
  detail        text not null,
  -- What the delivery became by it; null where it changed nothing.
  state         text,
  primary key (tenant_id, delivery_id, kind, hash)
) partition by range (delivery_id);
create table receipt_default partition of receipt default;

-- Receipts whose delivery is not known yet, or is in a worker's hand: they wait for its outcome.
create table receipt_pending (
  tenant_id     uuid not null,
  connection_id uuid not null,
  kind          text not null,
  hash          bytea not null check (octet_length(hash) = 32),
  delivery_id   uuid,
  external_id   text,
  recipient     text,
  at            timestamptz,
  received_at   timestamptz not null,
  code          text not null,
  unified_code  text not null,
  message       text not null,
  detail        text not null,
  -- When it is looked at next.
  look_at       timestamptz not null default now(),
  primary key (tenant_id, connection_id, kind, hash)
);
create index receipt_pending_look on receipt_pending (look_at);

create or replace function angarium_partitions_ensure(from_at timestamptz, until_at timestamptz) returns void
  language plpgsql security definer set search_path from current as $$
declare
  week timestamptz := date_trunc('week', from_at at time zone 'UTC') at time zone 'UTC';
  parent text;
  part text;
begin
  perform pg_advisory_xact_lock(hashtext('angarium_partitions'));
  while week <= until_at loop
    foreach parent in array array['message', 'attachment', 'delivery', 'attempt', 'event', 'receipt'] loop
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
select angarium_partitions_ensure(now() - interval '7 days', now() + interval '21 days');

do $$
declare
  name text;
begin
  foreach name in array array['receipt', 'receipt_default', 'receipt_pending'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
  end loop;
end $$;

grant select, insert on receipt, receipt_pending to angarium_app;
-- What a purge of content takes away.
grant update (recipient, message, detail) on receipt to angarium_app;
grant select, insert, update, delete on receipt, receipt_pending to angarium_worker;
