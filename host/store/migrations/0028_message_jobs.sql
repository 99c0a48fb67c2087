-- Actions on many messages: each job works through the messages that match, from the newest on.
create table message_job (
  tenant_id   uuid not null,
  id          uuid not null,
  action      text not null,
  state       text not null,
  -- JSON; its `until` is the time of the request at the latest.
  filter      text not null,
  -- The decision about unknown deliveries, of `resolve`.
  resolution  text,
  reason      text not null,
  -- How many matched when it was asked for.
  matched     bigint not null,
  done        bigint not null default 0,
  -- Messages whose state did not allow the action.
  skipped     bigint not null default 0,
  -- The last message that was looked at.
  reached     uuid,
  next_at     timestamptz not null default now(),
  created_at  timestamptz not null default now(),
  started_at  timestamptz,
  finished_at timestamptz,
  constraint message_job_pkey primary key (tenant_id, id),
  constraint message_job_tenant foreign key (tenant_id) references tenant,
  constraint message_job_action check (action in ('cancel', 'retry', 'resolve')),
  constraint message_job_state check (state in ('running', 'finished', 'canceled')),
  constraint message_job_resolution check ((action = 'resolve') = (resolution is not null)),
  constraint message_job_resolution_is_known check (resolution in ('sent', 'failed', 'again')),
  constraint message_job_end check ((state = 'running') = (finished_at is null))
);
create index message_job_due on message_job (next_at) where state = 'running';

alter table message_job enable row level security;
alter table message_job force row level security;
create policy tenant_rows on message_job to angarium_app
  using (tenant_id = angarium_tenant()) with check (tenant_id = angarium_tenant());
create policy worker_rows on message_job to angarium_worker using (true) with check (true);
grant select, insert on message_job to angarium_app;
grant update (state, finished_at) on message_job to angarium_app;
grant select, insert, update, delete on message_job to angarium_worker;
