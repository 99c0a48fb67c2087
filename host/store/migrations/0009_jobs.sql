-- Actions on many messages, and replays of dead letters. A job works through what matched when it was asked for; what it
-- has dealt with is at or behind `reached`, written in the transaction of its step.
create table job (
  tenant_id       uuid not null,
  id              uuid not null,
  action          text not null,
  state           text not null,
  -- JSON, of messages or, for a replay, of dead letters; its `until` is the time of the request at the latest.
  filter          text not null,
  -- The decision about unknown deliveries, of `resolve`.
  resolution      text,
  -- Null: as fast as it goes.
  rate_per_second integer,
  -- At most so many are acted on.
  most            bigint,
  reason          text,
  -- How many matched when it was asked for.
  matched         bigint not null,
  done            bigint not null default 0,
  -- Those whose state did not allow the action.
  skipped         bigint not null default 0,
  -- The last message or delivery that was looked at.
  reached         uuid,
  next_at         timestamptz not null default now(),
  created_at      timestamptz not null default now(),
  started_at      timestamptz,
  finished_at     timestamptz,
  constraint job_pkey primary key (tenant_id, id),
  constraint job_tenant foreign key (tenant_id) references tenant,
  constraint job_action check (action in ('cancel', 'retry', 'resolve', 'replay')),
  constraint job_state check (state in ('running', 'finished', 'canceled')),
  constraint job_resolution check ((action = 'resolve') = (resolution is not null)),
  constraint job_resolution_is_known check (resolution in ('sent', 'failed', 'again')),
  constraint job_rate check (rate_per_second between 1 and 1000),
  constraint job_replay_has_rate check (action <> 'replay' or rate_per_second is not null),
  constraint job_most check (most > 0),
  constraint job_end check ((state = 'running') = (finished_at is null))
);
-- Nodes look for the next step.
create index job_due on job (next_at) where state = 'running';
select angarium_isolate('job');
grant select, insert, update (state, finished_at, done, skipped, reached) on job to angarium_app;
grant select, insert, update, delete on job to angarium_worker;
