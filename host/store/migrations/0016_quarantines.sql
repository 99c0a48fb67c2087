-- Quarantines of one tenant, to whom grants were given, and what operators do.

-- A version that failed over one tenant's deliveries does not serve that tenant for a while. The nodes go by what they
-- have seen themselves; this is for people.
create table tenant_quarantine (
  tenant_id   uuid not null references tenant,
  digest      text not null references provider_component,
  began_at    timestamptz not null default now(),
  until       timestamptz not null,
  reason      text not null,
  primary key (tenant_id, digest)
);
alter table tenant_quarantine enable row level security;
alter table tenant_quarantine force row level security;
create policy tenant_rows on tenant_quarantine to angarium_app
  using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant());
create policy worker_rows on tenant_quarantine to angarium_worker using (true) with check (true);
grant select on tenant_quarantine to angarium_app;
grant select, insert, update, delete on tenant_quarantine to angarium_worker;

-- Whether the provider's grants were given to this version, or an operator said that it may keep them. Another one
-- takes its place only once that is said.
alter table provider_component add column granted boolean not null default false;
update provider_component set granted = true
  where digest in (select active_digest from provider union all select previous_digest from provider);

-- Who did what to that which belongs to no tenant. Append-only, as `audit` is.
create table operator_audit (
  id          uuid primary key,
  at          timestamptz not null default now(),
  -- The key that was used; null where the gateway did it by itself.
  key_id      uuid,
  -- The key's name then, or the part of the gateway.
  actor       text not null,
  action      text not null,
  subject     text not null,
  -- JSON.
  before      text,
  after       text,
  reason      text,
  request_id  text
);
grant select, insert on operator_audit to angarium_worker;
