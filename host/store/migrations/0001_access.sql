-- Who may do what. Everything is made in the current schema, so that one database can hold several installations:
-- `angarium migrate` leaves nothing else in the search path, and functions that run as the owner keep that path.

-- Two roles do all the work, and neither owns anything:
--   angarium_app     serves tenants' requests; row-level security shows it one tenant
--   angarium_worker  serves queue, dispatch and ledger; it crosses tenants
-- Roles belong to the cluster. Those that exist stay as they are, with a login if an administrator gave them one. The
-- login role of a node becomes one or the other with SET ROLE, so it must be a member of both.
do $$
declare
  role text;
begin
  foreach role in array array['angarium_app', 'angarium_worker'] loop
    if not exists (select from pg_roles where rolname = role) then
      execute format('create role %I nologin', role);
    end if;
    -- From PostgreSQL 16 on a member may lack SET ROLE, as the creator of a role does.
    if not (case when current_setting('server_version_num')::int >= 160000
        then pg_has_role(current_user, role, 'set') else pg_has_role(current_user, role, 'member') end) then
      execute format('grant %I to %I', role, current_user);
    end if;
  end loop;
  execute format('grant usage on schema %I to angarium_app, angarium_worker', current_schema());
  -- A node compares its own migrations with these.
  if to_regclass('_sqlx_migrations') is not null then
    grant select on _sqlx_migrations to angarium_worker;
  end if;
end $$;

-- The tenant of this transaction. After COMMIT a local setting reads as an empty string: no tenant.
create function angarium_tenant() returns uuid language sql stable parallel safe
  as $$ select nullif(current_setting('angarium.tenant', true), '')::uuid $$;

-- Puts a table under row-level security: `angarium_app` sees the rows of its tenant, `angarium_worker` sees all rows,
-- and nobody else any, not even the owner. Each table with a tenant is given to it once, where it is made.
create function angarium_isolate(isolated regclass, tenant_column name default 'tenant_id') returns void
  language plpgsql as $$
begin
  execute format('alter table %s enable row level security, force row level security', isolated);
  execute format('create policy tenant_rows on %s to angarium_app using (%I = angarium_tenant()) with check (%2$I = angarium_tenant())',
    isolated, tenant_column);
  execute format('create policy worker_rows on %s to angarium_worker using (true) with check (true)', isolated);
end $$;
revoke execute on function angarium_isolate from public;

-- Tasks that one node at a time does. A node takes a task's lease, prolongs it while it works, and returns it; what a
-- node that died had is free once its time is over, on the database's clock.
create table task_lease (
  task       text not null,
  -- Null: nobody has it.
  holder     uuid,
  held_until timestamptz,
  constraint task_lease_pkey primary key (task),
  constraint task_lease_task check (task in ('partitions', 'retention', 'operator_scripts')),
  constraint task_lease_has_an_end check ((holder is null) = (held_until is null))
);
insert into task_lease (task) values ('partitions'), ('retention'), ('operator_scripts');
grant select, update on task_lease to angarium_worker;
