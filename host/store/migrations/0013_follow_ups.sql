-- What operators' scripts import travels as they do.
alter table operator_script add column kind text not null default 'script' check (kind in ('script', 'module'));
alter table operator_script drop constraint operator_script_pkey;
alter table operator_script add primary key (kind, scope, name, version);
drop index operator_script_live;
create unique index operator_script_live on operator_script (kind, scope, name) where live;

-- Ends of deliveries that scripts are still to be asked about, written with what ended them; only of tenants whose
-- scripts want to know.
create table follow_up (
  tenant_id    uuid not null references tenant,
  delivery_id  uuid not null,
  message_id   uuid not null,
  -- The end that it reached.
  state        text not null,
  ended_at     timestamptz not null default now(),
  -- When somebody looks at it next.
  due_at       timestamptz not null default now(),
  tries        int not null default 0,
  -- JSON: what scripts said, with the ids of the messages that they want. It is written before the first of them is
  -- accepted, so that nobody is asked twice and nothing is sent twice.
  answer       text,
  primary key (tenant_id, delivery_id, state)
);
create index follow_up_due on follow_up (due_at);

-- How often a tenant's script was switched on again by hand: each node sees that its own breaker is to be reset.
create table script_reset (
  tenant_id  uuid not null references tenant,
  name       text not null,
  number     int not null,
  primary key (tenant_id, name)
);

do $$
declare
  name text;
begin
  foreach name in array array['follow_up', 'script_reset'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
    execute format('grant select, insert, update, delete on %I to angarium_worker', name);
  end loop;
end $$;

grant select, insert on follow_up to angarium_app;
grant select, insert, update on script_reset to angarium_app;
