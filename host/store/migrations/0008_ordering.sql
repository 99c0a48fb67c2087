-- Deliveries with the same ordering key go one after another.

alter table message add column ordering_key text;

-- Whose turn it is with a key: that delivery alone is in the queue or in a worker's hand. Whoever joins a key's line
-- or takes a turn on holds this row, so all that happens to a key happens one after another. A key nobody of which is
-- open has no row.
create table ordering (
  tenant_id   uuid not null,
  key         text not null,
  delivery_id uuid not null,
  primary key (tenant_id, key),
  unique (tenant_id, delivery_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);

-- The line behind it. A place is given while the key is held: the line is in the order of the commits, whatever the
-- clocks of the nodes say.
create table ordering_line (
  tenant_id   uuid not null,
  key         text not null,
  place       bigint generated always as identity,
  delivery_id uuid not null,
  due_at      timestamptz not null,
  priority    smallint not null,
  primary key (tenant_id, key, place),
  unique (tenant_id, delivery_id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

do $$
declare
  name text;
begin
  foreach name in array array['ordering', 'ordering_line'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
  end loop;
end $$;

grant select, insert, update, delete on ordering, ordering_line to angarium_app, angarium_worker;
