-- The main job's tables. Two roles use them, and neither owns anything:
--   angarium_app     what a tenant's request runs as; row-level security shows it one tenant
--   angarium_worker  queue, dispatch and ledger; crosses tenants
-- The login role becomes one or the other with SET ROLE and needs membership in both.

do $$ begin
  if not exists (select from pg_roles where rolname = 'angarium_app') then
    create role angarium_app nologin;
  end if;
  if not exists (select from pg_roles where rolname = 'angarium_worker') then
    create role angarium_worker nologin;
  end if;
  if not pg_has_role(current_user, 'angarium_app', 'member') then
    execute format('grant angarium_app to %I', current_user);
  end if;
  if not pg_has_role(current_user, 'angarium_worker', 'member') then
    execute format('grant angarium_worker to %I', current_user);
  end if;
end $$;

-- The tenant of this transaction. After COMMIT a local setting reads as an empty string: no tenant.
create function angarium_tenant() returns uuid language sql stable parallel safe
  as $$ select nullif(current_setting('angarium.tenant', true), '')::uuid $$;

create table tenant (
  id          uuid primary key,
  name        text not null unique check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  created_at  timestamptz not null default now()
);

create table api_key (
  tenant_id   uuid not null references tenant,
  id          uuid not null,
  name        text not null,
  -- SHA-256 of the whole key: it has 256 bits of its own, so a slow hash adds nothing.
  hash        bytea not null check (octet_length(hash) = 32),
  -- What is shown of it afterwards.
  hint        text not null,
  scopes      text[] not null,
  created_at  timestamptz not null default now(),
  expires_at  timestamptz,
  revoked_at  timestamptz,
  primary key (tenant_id, id)
);
-- Authentication looks a key up before any tenant is known.
create unique index api_key_hash on api_key (hash);

-- What the nodes' caches of a tenant's configuration are checked against.
create table tenant_config (
  tenant_id   uuid primary key references tenant,
  version     bigint not null default 1,
  changed_at  timestamptz not null default now()
);

create table connection (
  tenant_id   uuid not null references tenant,
  id          uuid not null,
  uid         text check (uid <> ''),
  name        text not null default '',
  provider    text not null,
  config      text not null,
  enabled     boolean not null default true,
  created_at  timestamptz not null default now(),
  updated_at  timestamptz not null default now(),
  deleted_at  timestamptz,
  primary key (tenant_id, id)
);
create unique index connection_uid on connection (tenant_id, uid) where deleted_at is null;

create table secret (
  tenant_id     uuid not null,
  connection_id uuid not null,
  name          text not null,
  version       integer not null check (version > 0),
  key_id        text not null,
  wrapped_key   bytea not null,
  ciphertext    bytea not null,
  created_at    timestamptz not null default now(),
  -- The end of a rotation's overlap; null for the current value.
  valid_until   timestamptz,
  primary key (tenant_id, connection_id, name, version),
  foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);

create table route (
  tenant_id      uuid not null references tenant,
  id             uuid not null,
  uid            text check (uid <> ''),
  channel        text not null,
  active_version integer,
  -- What `rollback` returns to.
  previous_version integer,
  created_at     timestamptz not null default now(),
  updated_at     timestamptz not null default now(),
  primary key (tenant_id, id)
);
create unique index route_uid on route (tenant_id, uid);
create unique index route_active_channel on route (tenant_id, channel) where active_version is not null;

create table route_version (
  tenant_id   uuid not null,
  route_id    uuid not null,
  version     integer not null check (version > 0),
  spec        text not null,
  created_at  timestamptz not null default now(),
  primary key (tenant_id, route_id, version),
  foreign key (tenant_id, route_id) references route (tenant_id, id)
);

-- Provider components are the operator's, shared by all tenants.
create table provider_component (
  digest      text primary key check (digest ~ '^[0-9a-f]{64}$'),
  name        text not null,
  version     text not null,
  descriptor  text not null,
  component   bytea not null,
  created_at  timestamptz not null default now(),
  quarantined_at timestamptz,
  quarantine_reason text
);
create index provider_component_name on provider_component (name, created_at);

create table provider (
  name            text primary key,
  active_digest   text references provider_component,
  previous_digest text references provider_component,
  -- Host patterns that the operator granted; what is declared but not here is refused.
  granted_hosts   text[] not null default '{}',
  version         bigint not null default 1,
  updated_at      timestamptz not null default now()
);

-- ── Messages ────────────────────────────────────────────────────────────────────────────────
-- Ids are UUIDv7, so a range of ids is a range of time: the partition key is the id itself,
-- and every look-up by id meets one partition.

create table message (
  tenant_id     uuid not null,
  id            uuid not null,
  created_at    timestamptz not null,
  channel       text not null,
  recipient     text not null,
  priority      smallint not null check (priority between 0 and 3),
  send_at       timestamptz,
  expires_at    timestamptz,
  reference     text,
  connection_id uuid,
  -- The message as JSON, kept as bytes: JSONB reorders keys, and a webhook's body is signed.
  body          bytea not null,
  primary key (tenant_id, id)
) partition by range (id);
create index message_reference on message (tenant_id, reference) where reference is not null;

create table attachment (
  tenant_id   uuid not null,
  message_id  uuid not null,
  number      integer not null,
  name        text not null,
  media_type  text not null,
  content_id  text,
  content     bytea not null,
  primary key (tenant_id, message_id, number)
) partition by range (message_id);

-- A unique index cannot span partitions by time, so idempotency keys have a table of their own.
create table idempotency (
  tenant_id   uuid not null,
  key         text not null check (length(key) between 1 and 255),
  fingerprint bytea not null,
  message_id  uuid not null,
  created_at  timestamptz not null,
  primary key (tenant_id, key)
);
create index idempotency_created on idempotency (created_at);

-- A delivery's row is written when its first attempt is settled; until then the message and its
-- lease or queue entry say all there is.
create table delivery (
  tenant_id       uuid not null,
  id              uuid not null,
  message_id      uuid not null,
  state           text not null check (state in ('queued', 'sent', 'delivered', 'failed', 'bounced',
                    'expired', 'canceled', 'suppressed', 'unroutable', 'unknown')),
  -- Number of the last attempt.
  attempts        integer not null,
  -- Attempts before this number no longer count: a retry by hand begins anew.
  counted_from    integer not null default 0,
  -- Workers that died while they held it.
  deaths          smallint not null default 0,
  connection_id   uuid,
  provider        text,
  external_id     text,
  code            text,
  unified_code    text,
  detail          text,
  cost_micros     bigint,
  cost_currency   text,
  next_attempt_at timestamptz,
  trigger         text,
  -- The lease under which it was last settled: recovery passes over what has an outcome.
  lease_id        uuid,
  updated_at      timestamptz not null,
  finished_at     timestamptz,
  primary key (tenant_id, id),
  check ((state = 'queued') = (finished_at is null)),
  check (state <> 'queued' or next_attempt_at is not null)
) partition by range (id);
create index delivery_state on delivery (tenant_id, state, id) where state <> 'sent' and state <> 'delivered';

create table attempt (
  tenant_id       uuid not null,
  delivery_id     uuid not null,
  number          integer not null check (number > 0),
  id              uuid not null,
  trigger         text not null check (trigger in ('scheduled', 'retry', 'fallback', 'manual', 'recovery')),
  channel         text not null,
  connection_id   uuid,
  provider        text,
  provider_version text,
  provider_digest text,
  route_id        uuid,
  route_version   integer,
  -- The ordered candidates with scores and reasons, as JSON.
  plan            text,
  started_at      timestamptz not null,
  finished_at     timestamptz not null,
  status          integer,
  code            text,
  unified_code    text,
  disposition     text not null check (disposition in ('accepted', 'rejected_permanent', 'rejected_transient',
                    'throttled', 'auth_failed', 'not_sent', 'unknown')),
  detail          text,
  external_id     text,
  cost_micros     bigint,
  cost_currency   text,
  units           integer,
  fallback_reason text,
  plugin_micros   integer,
  plugin_memory   bigint,
  primary key (tenant_id, delivery_id, number)
) partition by range (delivery_id);

create table event (
  tenant_id   uuid not null,
  message_id  uuid not null,
  id          uuid not null,
  delivery_id uuid,
  type        text not null,
  at          timestamptz not null,
  data        text,
  primary key (tenant_id, message_id, id)
) partition by range (message_id);

-- ── The queue ───────────────────────────────────────────────────────────────────────────────
-- Narrow on purpose: it holds what is due later or was left behind, and a claim deletes. What
-- is dispatched by the node that accepted it never comes here.

create table queue (
  tenant_id   uuid not null,
  delivery_id uuid not null,
  due_at      timestamptz not null,
  priority    smallint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_cost_delay = 0);
create index queue_due on queue (tenant_id, priority, due_at);

-- One row a batch. Its id is the fencing epoch: who can't find the row may not settle.
create table lease (
  tenant_id   uuid not null,
  id          uuid not null,
  node        uuid not null,
  expires_at  timestamptz not null,
  deliveries  uuid[] not null,
  primary key (tenant_id, id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

-- Committed before the first byte goes to a provider that can't recognise a repetition.
create table intent (
  tenant_id     uuid not null,
  delivery_id   uuid not null,
  number        integer not null,
  connection_id uuid not null,
  provider      text not null,
  -- What recovery does when no outcome followed.
  on_unknown    text not null check (on_unknown in ('retry', 'hold')),
  trigger       text not null,
  started_at    timestamptz not null,
  primary key (tenant_id, delivery_id)
);

create function angarium_uuid_at(at timestamptz) returns uuid language sql immutable parallel safe
  as $$ select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid $$;

-- Weekly partitions from the week of `from_at` to that of `until_at`. The default partition takes
-- what no week was made for: a late partition loses nothing.
create function angarium_partitions_ensure(from_at timestamptz, until_at timestamptz) returns void
  language plpgsql security definer set search_path from current as $$
declare
  week timestamptz := date_trunc('week', from_at at time zone 'UTC') at time zone 'UTC';
  parent text;
  part text;
begin
  perform pg_advisory_xact_lock(hashtext('angarium_partitions'));
  while week <= until_at loop
    foreach parent in array array['message', 'attachment', 'delivery', 'attempt', 'event'] loop
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

create table message_default    partition of message default;
create table attachment_default partition of attachment default;
create table delivery_default   partition of delivery default;
create table attempt_default    partition of attempt default;
create table event_default      partition of event default;
select angarium_partitions_ensure(now() - interval '7 days', now() + interval '21 days');

-- ── Who may do what ─────────────────────────────────────────────────────────────────────────
do $$
declare
  name text;
begin
  for name in select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = current_schema() and c.relkind in ('r', 'p')
        and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
  loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
  end loop;
end $$;

alter table tenant enable row level security;
alter table tenant force row level security;
create policy tenant_rows on tenant to angarium_app using (id = angarium_tenant());
create policy worker_rows on tenant to angarium_worker using (true) with check (true);

grant usage on schema public to angarium_app, angarium_worker;
grant select on tenant to angarium_app;
grant select, insert, update on api_key, connection, secret, route, route_version, tenant_config to angarium_app;
grant select on provider, provider_component to angarium_app;
grant select, insert on message, attachment, idempotency, lease, event to angarium_app;
grant select, insert, update on delivery to angarium_app;
grant select on attempt, intent to angarium_app;
grant select, insert, delete on queue to angarium_app;
grant delete on secret to angarium_app;
grant select, insert, update, delete on all tables in schema public to angarium_worker;
grant execute on function angarium_partitions_ensure to angarium_worker;
revoke execute on function angarium_partitions_ensure from public;
