-- What is particular: a tenant's declarative rules and its scripts, each with all of its versions.

create table rule (
  tenant_id   uuid not null references tenant,
  id          uuid not null,
  -- The client's own name for it.
  uid         text,
  -- Grows with each change.
  version     int not null check (version > 0),
  -- JSON.
  spec        text not null,
  created_at  timestamptz not null default now(),
  updated_at  timestamptz not null default now(),
  primary key (tenant_id, id)
);
create unique index rule_uid on rule (tenant_id, uid) where uid is not null;

-- What a rule was, and is: it stays when the rule is deleted, so that a decision can be understood later.
create table rule_version (
  tenant_id   uuid not null references tenant,
  rule_id     uuid not null,
  version     int not null,
  spec        text not null,
  created_at  timestamptz not null default now(),
  primary key (tenant_id, rule_id, version)
);

create table script (
  tenant_id   uuid not null references tenant,
  name        text not null,
  version     int not null check (version > 0),
  source      text not null,
  -- JSON: the cases that it passed before it was stored.
  cases       text,
  state       text not null default 'draft' check (state in ('draft', 'shadow', 'canary', 'live', 'retired')),
  -- Of recipients, for a canary.
  percentage  smallint check (percentage between 1 and 99),
  created_at  timestamptz not null default now(),
  -- When it last became live: a rollback goes to the latest before the one that is.
  live_at     timestamptz,
  primary key (tenant_id, name, version)
);
create unique index script_live on script (tenant_id, name) where state = 'live';

do $$
declare
  name text;
begin
  foreach name in array array['rule', 'rule_version', 'script'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
    execute format('grant select, insert, update, delete on %I to angarium_worker', name);
  end loop;
end $$;

grant select, insert, update, delete on rule to angarium_app;
grant select, insert on rule_version to angarium_app;
grant select, insert on script to angarium_app;
grant update (state, percentage, live_at) on script to angarium_app;

-- Scripts from the operators' folder: for all tenants, or for the tenant of that name. The database carries them to
-- every node.
create table operator_script (
  -- A tenant's name; empty for all of them.
  scope       text not null,
  name        text not null,
  version     int not null check (version > 0),
  source      text not null,
  live        boolean not null,
  created_at  timestamptz not null default now(),
  primary key (scope, name, version)
);
create unique index operator_script_live on operator_script (scope, name) where live;
grant select on operator_script to angarium_app;
grant select, insert, update, delete on operator_script to angarium_worker;
