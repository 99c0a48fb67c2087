-- Tenants, their keys and settings, and the audit of what was changed.

create table tenant (
  id              uuid not null,
  name            text not null,
  -- One of the configuration's.
  retention_class text not null default 'default',
  created_at      timestamptz not null default now(),
  constraint tenant_pkey primary key (id),
  constraint tenant_name_key unique (name),
  constraint tenant_name_check check (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  constraint tenant_retention_class check (retention_class ~ '^[a-z0-9][a-z0-9_-]{0,62}$')
);
select angarium_isolate('tenant', 'id');
grant select on tenant to angarium_app;
grant select, insert, update, delete on tenant to angarium_worker;

create table api_key (
  tenant_id  uuid not null,
  id         uuid not null,
  name       text not null,
  -- SHA-256 of the whole key, which has 256 bits of its own: a slow hash would add nothing.
  hash       bytea not null,
  -- The part of the key that lists show.
  hint       text not null,
  scopes     text[] not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  revoked_at timestamptz,
  constraint api_key_pkey primary key (tenant_id, id),
  constraint api_key_tenant foreign key (tenant_id) references tenant,
  constraint api_key_hash_is_sha256 check (octet_length(hash) = 32)
);
-- Authentication looks a key up before any tenant is known.
create unique index api_key_hash on api_key (hash);
select angarium_isolate('api_key');
grant select, insert, update on api_key to angarium_app;
grant select, insert, update, delete on api_key to angarium_worker;

-- The number of a tenant's configuration, which the nodes compare with what they remember.
create table tenant_config (
  tenant_id  uuid not null,
  version    bigint not null default 1,
  changed_at timestamptz not null default now(),
  constraint tenant_config_pkey primary key (tenant_id),
  constraint tenant_config_tenant foreign key (tenant_id) references tenant
);
select angarium_isolate('tenant_config');
grant select, insert, update on tenant_config to angarium_app;
grant select, insert, update, delete on tenant_config to angarium_worker;

-- What a tenant sets up for all of its deliveries.
create table tenant_settings (
  tenant_id  uuid not null,
  -- Grows with each change.
  version    bigint not null,
  -- JSON.
  settings   text not null,
  updated_at timestamptz not null default now(),
  constraint tenant_settings_pkey primary key (tenant_id),
  constraint tenant_settings_tenant foreign key (tenant_id) references tenant,
  constraint tenant_settings_version check (version > 0)
);
select angarium_isolate('tenant_settings');
grant select, insert, update on tenant_settings to angarium_app;
grant select, insert, update, delete on tenant_settings to angarium_worker;

-- ── The audit ───────────────────────────────────────────────────────────────────────────────
-- Append-only: nobody is granted more than to add and to read.

-- Changes of what belongs to a tenant.
create table audit (
  tenant_id  uuid not null,
  id         uuid not null,
  at         timestamptz not null default now(),
  actor_kind text not null,
  -- Keys, users and jobs have ids; a command line and the gateway have none.
  actor_id   text,
  -- The actor's name then.
  actor      text not null,
  action     text not null,
  subject    text not null,
  -- JSON.
  before     text,
  after      text,
  reason     text,
  request_id text,
  constraint audit_pkey primary key (tenant_id, id),
  constraint audit_tenant foreign key (tenant_id) references tenant,
  constraint audit_actor_kind_check check (actor_kind in ('api_key', 'user', 'job', 'command_line', 'gateway')),
  constraint audit_actor_id_check check ((actor_id is null) = (actor_kind in ('command_line', 'gateway')))
);
-- The history of one subject.
create index audit_subject on audit (tenant_id, subject, id);
select angarium_isolate('audit');
grant select, insert on audit to angarium_app, angarium_worker;

-- Changes of what belongs to no tenant.
create table operator_audit (
  id         uuid not null,
  at         timestamptz not null default now(),
  actor_kind text not null,
  actor_id   text,
  actor      text not null,
  action     text not null,
  subject    text not null,
  before     text,
  after      text,
  reason     text,
  request_id text,
  constraint operator_audit_pkey primary key (id),
  constraint operator_audit_actor_kind_check
    check (actor_kind in ('api_key', 'user', 'job', 'command_line', 'gateway')),
  constraint operator_audit_actor_id_check
    check ((actor_id is null) = (actor_kind in ('command_line', 'gateway')))
);
grant select, insert on operator_audit to angarium_worker;
