-- What a tenant sets up for all of its deliveries, and what overrides leave in the ledger.

create table tenant_settings (
  tenant_id   uuid primary key references tenant,
  -- Grows with each change.
  version     bigint not null check (version > 0),
  -- JSON.
  settings    text not null,
  updated_at  timestamptz not null default now()
);

alter table tenant_settings enable row level security;
alter table tenant_settings force row level security;
create policy tenant_rows on tenant_settings to angarium_app
  using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant());
create policy worker_rows on tenant_settings to angarium_worker using (true) with check (true);
grant select, insert, update on tenant_settings to angarium_app;
grant select, insert, update, delete on tenant_settings to angarium_worker;

-- What the provider itself said of an answer, where an override understands it otherwise; and whose.
alter table attempt add column said text, add column overridden_by text check (overridden_by in ('route', 'tenant'));
