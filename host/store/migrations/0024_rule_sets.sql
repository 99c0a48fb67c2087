-- The number of a tenant's set of rules grows with each change of a rule, and a decision keeps it. So a later explanation
-- finds the rules that decided, be they changed or deleted since.

create table rule_set (
  tenant_id   uuid not null constraint rule_set_tenant references tenant,
  number      bigint not null constraint rule_set_number_counts_changes check (number > 0),
  constraint rule_set_pkey primary key (tenant_id)
);

create table rule_set_change (
  tenant_id   uuid not null constraint rule_set_change_tenant references tenant,
  number      bigint not null,
  rule_id     uuid not null,
  -- The version of the rule that is in the sets from this number on; null: the rule was deleted.
  version     int,
  constraint rule_set_change_pkey primary key (tenant_id, number)
);

-- The rules that are there make up the first set.
alter table rule no force row level security;
insert into rule_set_change (tenant_id, number, rule_id, version)
  select tenant_id, row_number() over (partition by tenant_id order by id), id, version from rule;
insert into rule_set (tenant_id, number) select tenant_id, max(number) from rule_set_change group by tenant_id;
alter table rule force row level security;

do $$
declare
  name text;
begin
  foreach name in array array['rule_set', 'rule_set_change'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
    execute format('grant select, insert, update, delete on %I to angarium_worker', name);
  end loop;
end $$;
grant select, insert, update on rule_set to angarium_app;
grant select, insert on rule_set_change to angarium_app;
