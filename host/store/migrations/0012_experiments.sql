-- Candidates: versions of scripts and rules that are tried beside what is live, and what comes of it.

alter table script add constraint script_percentage check ((state = 'canary') = (percentage is not null));

create table experiment (
  tenant_id   uuid not null references tenant,
  id          uuid not null,
  kind        text not null check (kind in ('script', 'rule')),
  -- The script's name, or the rule's id.
  subject     text not null,
  -- Of the script; of a rule the one that it was a change of.
  version     int not null check (version > 0),
  mode        text not null check (mode in ('shadow', 'canary')),
  -- Of recipients.
  percentage  smallint check (percentage between 1 and 99),
  -- A rule's, as JSON.
  spec        text,
  started_at  timestamptz not null default now(),
  ended_at    timestamptz,
  primary key (tenant_id, id),
  check ((mode = 'canary') = (percentage is not null)),
  check ((kind = 'rule') = (spec is not null))
);
-- A script has one candidate at a time, and so have the rules of a tenant together.
create unique index experiment_of_script on experiment (tenant_id, subject) where kind = 'script' and ended_at is null;
create unique index experiment_of_rules on experiment (tenant_id) where kind = 'rule' and ended_at is null;
create index experiment_subject on experiment (tenant_id, kind, subject, id);

-- What nodes have counted; each adds its own every second.
create table experiment_count (
  tenant_id   uuid not null,
  experiment_id    uuid not null,
  arm         text not null check (arm in ('live', 'candidate')),
  what        text not null,
  count       bigint not null,
  primary key (tenant_id, experiment_id, arm, what),
  foreign key (tenant_id, experiment_id) references experiment on delete cascade
);

-- Messages whose deliveries are followed: how they ended, the ledger tells.
create table experiment_message (
  tenant_id   uuid not null,
  experiment_id    uuid not null,
  message_id  uuid not null,
  arm         text not null check (arm in ('live', 'candidate')),
  primary key (tenant_id, experiment_id, message_id),
  foreign key (tenant_id, experiment_id) references experiment on delete cascade
);

-- What a shadow would have said otherwise; the latest ones.
create table experiment_difference (
  tenant_id   uuid not null,
  experiment_id    uuid not null,
  id          uuid not null,
  message_id  uuid not null,
  hook        text not null,
  -- JSON of the members in which they differ.
  live        text not null,
  candidate   text not null,
  at          timestamptz not null,
  primary key (tenant_id, experiment_id, id),
  foreign key (tenant_id, experiment_id) references experiment on delete cascade
);
-- Whoever purges a message's content purges what was said of it.
create index experiment_difference_message on experiment_difference (tenant_id, message_id);

do $$
declare
  name text;
begin
  foreach name in array array['experiment', 'experiment_count', 'experiment_message', 'experiment_difference'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
    execute format('grant select on %I to angarium_app', name);
    execute format('grant select, insert, update, delete on %I to angarium_worker', name);
  end loop;
end $$;

grant insert on experiment to angarium_app;
grant update (percentage, ended_at) on experiment to angarium_app;
grant delete on experiment_difference to angarium_app;
