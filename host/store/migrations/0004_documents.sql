-- Versioned documents (routes, rules and scripts), operators' scripts, and experiments.

create table document (
  tenant_id        uuid not null,
  kind             text not null,
  id               uuid not null,
  -- The client's own name for it; a script's name.
  uid              text,
  -- A route's.
  channel          text,
  -- Null: it does nothing.
  active_version   integer,
  -- The length of the active version, for the limit on a tenant's configuration.
  active_bytes     integer not null default 0,
  -- The version that a rollback returns to.
  previous_version integer,
  latest_version   integer not null default 0,
  created_at       timestamptz not null default now(),
  updated_at       timestamptz not null default now(),
  constraint document_pkey primary key (tenant_id, kind, id),
  constraint document_tenant foreign key (tenant_id) references tenant,
  constraint document_kind check (kind in ('route', 'rule', 'script')),
  constraint document_named check (uid <> ''),
  constraint document_of_script check (kind <> 'script' or uid is not null),
  constraint document_of_route check ((kind = 'route') = (channel is not null)),
  constraint document_versions check (active_version <= latest_version and previous_version <= latest_version),
  constraint document_active_bytes check (active_version is not null or active_bytes = 0)
);
create unique index document_uid on document (tenant_id, kind, uid);
-- A channel has one active route.
create unique index document_active_channel on document (tenant_id, channel)
  where kind = 'route' and active_version is not null;
select angarium_isolate('document');
grant select, insert, update, delete on document to angarium_app, angarium_worker;

-- A version never changes, and stays when its document is deleted, so that a past decision can be understood.
create table document_version (
  tenant_id    uuid not null,
  kind         text not null,
  document_id  uuid not null,
  version      integer not null,
  -- JSON of a route or a rule, the source of a script.
  body         text not null,
  -- JSON: the cases that a script passed before it was stored.
  cases        text,
  created_at   timestamptz not null default now(),
  -- When it last became active; null: never.
  activated_at timestamptz,
  constraint document_version_pkey primary key (tenant_id, kind, document_id, version),
  constraint document_version_tenant foreign key (tenant_id) references tenant,
  constraint document_version_kind check (kind in ('route', 'rule', 'script')),
  constraint document_version_number check (version > 0)
);
select angarium_isolate('document_version');
grant select, insert, update (activated_at) on document_version to angarium_app;
grant select, insert, update, delete on document_version to angarium_worker;

-- ── Sets of rules ───────────────────────────────────────────────────────────────────────────
-- The number of a tenant's set of rules grows with each change of a rule, and a decision keeps it. So a later explanation
-- finds the rules that decided, even if they have changed or are deleted.

create table rule_set (
  tenant_id uuid not null,
  number    bigint not null,
  constraint rule_set_pkey primary key (tenant_id),
  constraint rule_set_tenant foreign key (tenant_id) references tenant,
  constraint rule_set_number_counts_changes check (number > 0)
);
select angarium_isolate('rule_set');
grant select, insert, update on rule_set to angarium_app;
grant select, insert, update, delete on rule_set to angarium_worker;

create table rule_set_change (
  tenant_id uuid not null,
  number    bigint not null,
  rule_id   uuid not null,
  -- The version of the rule that is in the sets from this number on; null: the rule was deleted.
  version   integer,
  constraint rule_set_change_pkey primary key (tenant_id, number),
  constraint rule_set_change_tenant foreign key (tenant_id) references tenant
);
select angarium_isolate('rule_set_change');
grant select, insert on rule_set_change to angarium_app;
grant select, insert, update, delete on rule_set_change to angarium_worker;

-- ── Operators' scripts ──────────────────────────────────────────────────────────────────────

-- Scripts, and the modules that scripts import, from the operators' folder. The database carries them to every node.
create table operator_script (
  kind       text not null default 'script',
  -- The name of the tenant that it is for; empty for all tenants.
  scope      text not null,
  name       text not null,
  version    integer not null,
  source     text not null,
  live       boolean not null,
  created_at timestamptz not null default now(),
  constraint operator_script_pkey primary key (kind, scope, name, version),
  constraint operator_script_kind check (kind in ('script', 'module')),
  constraint operator_script_version check (version > 0)
);
create unique index operator_script_live on operator_script (kind, scope, name) where live;
grant select on operator_script to angarium_app;
grant select, insert, update, delete on operator_script to angarium_worker;

-- How often a tenant's script was switched on again by hand; by it each node sees that its own breaker is to be reset.
create table script_reset (
  tenant_id uuid not null,
  name      text not null,
  number    integer not null,
  constraint script_reset_pkey primary key (tenant_id, name),
  constraint script_reset_tenant foreign key (tenant_id) references tenant
);
select angarium_isolate('script_reset');
grant select, insert, update on script_reset to angarium_app;
grant select, insert, update, delete on script_reset to angarium_worker;

-- ── Experiments ─────────────────────────────────────────────────────────────────────────────

-- A version of a rule or script that is tried beside the live one.
create table experiment (
  tenant_id    uuid not null,
  id           uuid not null,
  kind         text not null,
  document_id  uuid not null,
  -- The variant.
  version      integer not null,
  -- What it is compared with; null where no version of the document was live.
  live_version integer,
  mode         text not null,
  -- Of recipients.
  percentage   smallint,
  started_at   timestamptz not null default now(),
  ended_at     timestamptz,
  constraint experiment_pkey primary key (tenant_id, id),
  constraint experiment_tenant foreign key (tenant_id) references tenant,
  constraint experiment_kind check (kind in ('rule', 'script')),
  constraint experiment_mode check (mode in ('shadow', 'canary')),
  constraint experiment_percentage check (percentage between 1 and 99),
  constraint experiment_canary check ((mode = 'canary') = (percentage is not null)),
  constraint experiment_variant check (version <> live_version)
);
-- A script has one experiment at a time, and so have the rules of a tenant together.
create unique index experiment_of_script on experiment (tenant_id, document_id)
  where kind = 'script' and ended_at is null;
create unique index experiment_of_rules on experiment (tenant_id) where kind = 'rule' and ended_at is null;
-- A document's latest experiment.
create index experiment_document on experiment (tenant_id, kind, document_id, id);
select angarium_isolate('experiment');
grant select, insert, update (percentage, ended_at) on experiment to angarium_app;
grant select, insert, update, delete on experiment to angarium_worker;

-- Each node adds its own counts every second.
create table experiment_count (
  tenant_id     uuid not null,
  experiment_id uuid not null,
  arm           text not null,
  what          text not null,
  count         bigint not null,
  constraint experiment_count_pkey primary key (tenant_id, experiment_id, arm, what),
  constraint experiment_count_experiment
    foreign key (tenant_id, experiment_id) references experiment on delete cascade,
  constraint experiment_count_arm check (arm in ('live', 'variant'))
);
select angarium_isolate('experiment_count');
grant select on experiment_count to angarium_app;
grant select, insert, update, delete on experiment_count to angarium_worker;

-- Messages whose deliveries are followed; the ledger knows their ends.
create table experiment_message (
  tenant_id     uuid not null,
  experiment_id uuid not null,
  message_id    uuid not null,
  arm           text not null,
  constraint experiment_message_pkey primary key (tenant_id, experiment_id, message_id),
  constraint experiment_message_experiment
    foreign key (tenant_id, experiment_id) references experiment on delete cascade,
  constraint experiment_message_arm check (arm in ('live', 'variant'))
);
select angarium_isolate('experiment_message');
grant select on experiment_message to angarium_app;
grant select, insert, update, delete on experiment_message to angarium_worker;

-- The latest answers of a shadow that differ from the live ones.
create table experiment_difference (
  tenant_id     uuid not null,
  experiment_id uuid not null,
  id            uuid not null,
  message_id    uuid not null,
  hook          text not null,
  -- JSON of the members in which they differ.
  live          text not null,
  variant       text not null,
  at            timestamptz not null,
  constraint experiment_difference_pkey primary key (tenant_id, experiment_id, id),
  constraint experiment_difference_experiment
    foreign key (tenant_id, experiment_id) references experiment on delete cascade
);
-- A purge of a message's content purges these.
create index experiment_difference_message on experiment_difference (tenant_id, message_id);
select angarium_isolate('experiment_difference');
grant select, delete on experiment_difference to angarium_app;
grant select, insert, update, delete on experiment_difference to angarium_worker;
