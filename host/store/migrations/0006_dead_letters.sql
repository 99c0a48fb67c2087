-- What ended without success waits for a person: the list of it, its replay, and who did what.

-- A person took it off the list; it stays on record.
alter table delivery add column discarded_at timestamptz;
alter table delivery add column discard_reason text;
-- The job that opened it again, if one did.
alter table delivery add column replay_id uuid;

-- The list of dead letters, and nothing but them. What succeeds never touches it.
create index delivery_dead on delivery (tenant_id, id)
  where state in ('failed', 'bounced', 'expired', 'unroutable', 'unknown') and discarded_at is null;
create index delivery_replay on delivery (tenant_id, replay_id) where replay_id is not null;

-- A replay of all dead letters that match, worked through by id: what was moved is behind `reached`
-- in the same transaction, so each is moved once whatever dies.
create table replay_job (
  tenant_id       uuid not null references tenant,
  id              uuid not null,
  state           text not null check (state in ('running', 'finished', 'canceled')),
  -- JSON; its `until` is the time of the request at the latest, so that what fails again is not met again.
  filter          text not null,
  rate_per_second integer not null check (rate_per_second between 1 and 1000),
  -- At most so many.
  most            bigint check (most > 0),
  reason          text,
  -- How many matched when it was asked for.
  matched         bigint not null,
  replayed        bigint not null default 0,
  -- Those that can't be sent any more: expired, or their content purged.
  skipped         bigint not null default 0,
  -- The last delivery that was looked at.
  reached         uuid,
  next_at         timestamptz not null default now(),
  created_at      timestamptz not null default now(),
  started_at      timestamptz,
  finished_at     timestamptz,
  primary key (tenant_id, id),
  check ((state = 'running') = (finished_at is null))
);
create index replay_job_due on replay_job (next_at) where state = 'running';

-- Who did what. Append-only: nobody is granted more than to add and to read.
create table audit (
  tenant_id   uuid not null references tenant,
  id          uuid not null,
  at          timestamptz not null default now(),
  -- The key that was used, and its name then.
  key_id      uuid not null,
  actor       text not null,
  action      text not null,
  subject     text not null,
  -- JSON.
  before      text,
  after       text,
  reason      text,
  request_id  text,
  primary key (tenant_id, id)
);
create index audit_subject on audit (tenant_id, subject, id);

do $$
declare
  name text;
begin
  foreach name in array array['replay_job', 'audit'] loop
    execute format('alter table %I enable row level security', name);
    execute format('alter table %I force row level security', name);
    execute format('create policy tenant_rows on %I to angarium_app using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant())', name);
    execute format('create policy worker_rows on %I to angarium_worker using (true) with check (true)', name);
  end loop;
end $$;

grant select, insert on replay_job to angarium_app;
grant update (state, finished_at) on replay_job to angarium_app;
grant select, insert, update, delete on replay_job to angarium_worker;
grant select, insert on audit to angarium_app, angarium_worker;
