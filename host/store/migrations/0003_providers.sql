-- Providers and the tenants' connections to them.

-- Components belong to the operators and serve all tenants.
create table provider_component (
  digest            text not null,
  name              text not null,
  version           text not null,
  descriptor        text not null,
  component         bytea not null,
  -- Whether the provider's grants were given to this version, or an operator said that it may keep them. Another one
  -- takes its place only after that.
  granted           boolean not null default false,
  quarantined_at    timestamptz,
  quarantine_reason text,
  created_at        timestamptz not null default now(),
  constraint provider_component_pkey primary key (digest),
  constraint provider_component_digest check (digest ~ '^[0-9a-f]{64}$')
);
-- A provider's versions in order of time.
create index provider_component_name on provider_component (name, created_at);
grant select on provider_component to angarium_app;
grant select, insert, update, delete on provider_component to angarium_worker;

create table provider (
  name            text not null,
  active_digest   text,
  -- The component that a rollback returns to.
  previous_digest text,
  -- Host patterns that the operator granted; what is declared but not here is refused.
  granted_hosts   text[] not null default '{}',
  version         bigint not null default 1,
  updated_at      timestamptz not null default now(),
  constraint provider_pkey primary key (name),
  constraint provider_active foreign key (active_digest) references provider_component,
  constraint provider_previous foreign key (previous_digest) references provider_component
);
grant select on provider to angarium_app;
grant select, insert, update, delete on provider to angarium_worker;

-- A component that failed over one tenant's deliveries does not serve that tenant for a while. The nodes go by what they
-- have seen themselves; this is for people.
create table tenant_quarantine (
  tenant_id uuid not null,
  digest    text not null,
  began_at  timestamptz not null default now(),
  until     timestamptz not null,
  reason    text not null,
  constraint tenant_quarantine_pkey primary key (tenant_id, digest),
  constraint tenant_quarantine_tenant foreign key (tenant_id) references tenant,
  constraint tenant_quarantine_component foreign key (digest) references provider_component
);
select angarium_isolate('tenant_quarantine');
grant select on tenant_quarantine to angarium_app;
grant select, insert, update, delete on tenant_quarantine to angarium_worker;

-- ── Connections ─────────────────────────────────────────────────────────────────────────────

create table connection (
  tenant_id      uuid not null,
  id             uuid not null,
  -- The client's own name for it.
  uid            text,
  name           text not null default '',
  provider       text not null,
  config         text not null,
  -- JSON: the policy of its circuit breaker, and its rate limit; null: the defaults.
  guards         text,
  enabled        boolean not null default true,
  -- The end of its callback URL: 256 random bits, so that nobody guesses it. It selects tenant and connection before
  -- anything else is known of a request.
  callback_token text not null default replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''),
  created_at     timestamptz not null default now(),
  updated_at     timestamptz not null default now(),
  deleted_at     timestamptz,
  constraint connection_pkey primary key (tenant_id, id),
  constraint connection_tenant foreign key (tenant_id) references tenant,
  constraint connection_uid_is_a_name check (uid <> '')
);
-- The name of a deleted connection is free again.
create unique index connection_uid on connection (tenant_id, uid) where deleted_at is null;
create unique index connection_callback_token on connection (callback_token);
select angarium_isolate('connection');
grant select, insert, update on connection to angarium_app;
grant select, insert, update, delete on connection to angarium_worker;

-- Sealed secrets, each under a data key that a key-encryption key wraps.
create table secret (
  tenant_id     uuid not null,
  connection_id uuid not null,
  name          text not null,
  version       integer not null,
  key_id        text not null,
  wrapped_key   bytea not null,
  ciphertext    bytea not null,
  created_at    timestamptz not null default now(),
  -- The end of a rotation's overlap; null for the current value.
  valid_until   timestamptz,
  constraint secret_pkey primary key (tenant_id, connection_id, name, version),
  constraint secret_connection foreign key (tenant_id, connection_id) references connection (tenant_id, id),
  constraint secret_version check (version > 0)
);
select angarium_isolate('secret');
grant select, insert, update, delete on secret to angarium_app, angarium_worker;

-- ── Guards of connections, as all nodes know them ───────────────────────────────────────────

-- A connection whose circuit breaker has ever opened. Nodes judge by what they see, write the consequences here, and
-- read those of the others.
create table breaker (
  tenant_id     uuid not null,
  connection_id uuid not null,
  phase         text not null default 'closed',
  -- Grows with each change of the phase; a writer that knows an older one is too late.
  epoch         bigint not null default 0,
  since         timestamptz not null default now(),
  -- The time of the next try; null where it is not open, or until a person closes it.
  opened_until  timestamptz,
  -- How often it opened since it was closed: each time is twice as long.
  openings      integer not null default 0,
  cause         text,
  detail        text not null default '',
  -- While it is half open: deliveries that were let through, those of them that went well, and when the others no longer
  -- count.
  probes        integer not null default 0,
  successes     integer not null default 0,
  probes_until  timestamptz,
  -- The provider asked for a pause.
  paused_until  timestamptz,
  changed_at    timestamptz not null default now(),
  constraint breaker_pkey primary key (tenant_id, connection_id),
  constraint breaker_phase check (phase in ('closed', 'open', 'half_open')),
  constraint breaker_cause
    check (cause in ('consecutive_failures', 'failure_rate', 'auth_failed', 'probe_failed', 'manual')),
  constraint breaker_opened_until check (phase = 'open' or opened_until is null),
  constraint breaker_probes_until check ((phase = 'half_open') = (probes_until is not null))
);
-- Nodes read these each second.
create index breaker_not_closed on breaker (phase) where phase <> 'closed';
create index breaker_changed on breaker (changed_at);
select angarium_isolate('breaker');
grant select, insert, update, delete on breaker to angarium_app, angarium_worker;

-- When a connection with a rate limit may be asked next. Nodes take their turns of the next moment, all in one
-- statement, and this moves on.
create table rate_schedule (
  tenant_id     uuid not null,
  connection_id uuid not null,
  -- The last turn that was given away.
  taken_until   timestamptz not null,
  -- The limit, and what was asked for and given the last time.
  step_micros   double precision not null,
  burst         integer not null,
  turns         integer not null,
  constraint rate_schedule_pkey primary key (tenant_id, connection_id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
select angarium_isolate('rate_schedule');
grant select, delete on rate_schedule to angarium_app;
grant select, insert, update, delete on rate_schedule to angarium_worker;
