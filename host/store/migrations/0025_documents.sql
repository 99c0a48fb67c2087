-- Versioned documents: routes, rules and scripts share one pair of tables, and experiments try their versions.

drop table experiment_difference, experiment_message, experiment_count, experiment;
drop table route_version, route, rule_version, rule, script;

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
create unique index document_active_channel on document (tenant_id, channel)
  where kind = 'route' and active_version is not null;

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
create index experiment_document on experiment (tenant_id, kind, document_id, id);

-- Each node adds its own counts every second.
create table experiment_count (
  tenant_id     uuid not null,
  experiment_id uuid not null,
  arm           text not null,
  what          text not null,
  count         bigint not null,
  constraint experiment_count_pkey primary key (tenant_id, experiment_id, arm, what),
  constraint experiment_count_arm check (arm in ('live', 'variant')),
  constraint experiment_count_experiment foreign key (tenant_id, experiment_id) references experiment on delete cascade
);

-- Messages whose deliveries are followed; the ledger knows their ends.
create table experiment_message (
  tenant_id     uuid not null,
  experiment_id uuid not null,
  message_id    uuid not null,
  arm           text not null,
  constraint experiment_message_pkey primary key (tenant_id, experiment_id, message_id),
  constraint experiment_message_arm check (arm in ('live', 'variant')),
  constraint experiment_message_experiment foreign key (tenant_id, experiment_id) references experiment on delete cascade
);

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
  constraint experiment_difference_experiment foreign key (tenant_id, experiment_id) references experiment on delete cascade
);
-- A purge of a message's content purges these.
create index experiment_difference_message on experiment_difference (tenant_id, message_id);

do $$
declare
  name text;
begin
  foreach name in array array['document', 'document_version', 'experiment', 'experiment_count', 'experiment_message',
                              'experiment_difference'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
    execute format('grant select on %I to angarium_app', name);
    execute format('grant select, insert, update, delete on %I to angarium_worker', name);
  end loop;
end $$;

grant insert, update, delete on document to angarium_app;
grant insert on document_version to angarium_app;
grant update (activated_at) on document_version to angarium_app;
grant insert on experiment to angarium_app;
grant update (percentage, ended_at) on experiment to angarium_app;
grant delete on experiment_difference to angarium_app;
