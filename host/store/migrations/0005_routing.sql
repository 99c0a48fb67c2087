-- What keeps a connection from being asked too much, as all nodes know it together.

-- JSON of its circuit breaker's policy and its limit on the rate; null: the defaults.
alter table connection add column guards text;

-- A connection whose breaker has ever opened. Nodes judge by what they see and write here what
-- follows; each reads the changes.
create table breaker (
  tenant_id     uuid not null,
  connection_id uuid not null,
  phase         text not null default 'closed' check (phase in ('closed', 'open', 'half_open')),
  -- Grows with each change of the phase: who speaks of an older one is too late.
  epoch         bigint not null default 0,
  since         timestamptz not null default now(),
  -- When it is tried again; null where it is not open, or until a person closes it.
  opened_until  timestamptz,
  -- How often it opened since it was closed: each time is twice as long.
  openings      integer not null default 0,
  cause         text check (cause in ('consecutive_failures', 'failure_rate', 'auth_failed', 'probe_failed', 'manual')),
  detail        text not null default '',
  -- While it is half open: deliveries that were let through, those of them that went well, and when the
  -- others no longer count.
  probes        integer not null default 0,
  successes     integer not null default 0,
  probes_until  timestamptz,
  -- The provider asked for a pause.
  paused_until  timestamptz,
  changed_at    timestamptz not null default now(),
  primary key (tenant_id, connection_id),
  check (phase = 'open' or opened_until is null),
  check ((phase = 'half_open') = (probes_until is not null))
);
-- What nodes look for each second.
create index breaker_standing on breaker (phase) where phase <> 'closed';
create index breaker_changed on breaker (changed_at);

-- When a connection with a limit on its rate may be asked next. Nodes take what they need for the
-- next moment, all in one statement, and this moves on.
create table rate_schedule (
  tenant_id     uuid not null,
  connection_id uuid not null,
  -- The last turn that was given away.
  taken_until   timestamptz not null,
  -- The limit, and what was asked for and given the last time.
  step_micros   double precision not null,
  burst         integer not null,
  turns         integer not null,
  primary key (tenant_id, connection_id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

-- An event that is not a message's tells whose it is; its `message_id` is its own id, so that it
-- stands in the partition of its time.
alter table event add column connection_id uuid;

do $$
declare
  name text;
begin
  foreach name in array array['breaker', 'rate_schedule'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
  end loop;
end $$;

grant select, insert, update, delete on breaker to angarium_app;
grant select, delete on rate_schedule to angarium_app;
grant select, insert, update, delete on breaker, rate_schedule to angarium_worker;
