-- The queue and its leases, ordering keys, and what follows an end.

-- Narrow on purpose: it holds what is due later or was left behind, and a claim deletes. What the accepting node
-- dispatches itself never comes here.
create table queue (
  tenant_id   uuid not null,
  delivery_id uuid not null,
  due_at      timestamptz not null,
  priority    smallint not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_cost_delay = 0);
-- All that a claim reads.
create index queue_due on queue (tenant_id, priority, due_at);
select angarium_isolate('queue');
grant select, insert, delete on queue to angarium_app;
grant select, insert, update, delete on queue to angarium_worker;

-- One row a batch. Its id is the fencing epoch: a worker that does not find the row may not settle.
create table lease (
  tenant_id  uuid not null,
  id         uuid not null,
  node       uuid not null,
  expires_at timestamptz not null,
  deliveries uuid[] not null,
  -- With each delivery, the number of its last attempt when the lease began; null for what was just accepted. A delivery
  -- that has a later one was settled under the lease: it may have been claimed again since.
  attempts   integer[],
  constraint lease_pkey primary key (tenant_id, id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
select angarium_isolate('lease');
grant select, insert on lease to angarium_app;
grant select, insert, update, delete on lease to angarium_worker;

-- Committed before the first byte goes to a provider that cannot recognise a repetition.
create table intent (
  tenant_id     uuid not null,
  delivery_id   uuid not null,
  number        integer not null,
  connection_id uuid not null,
  provider      text not null,
  -- What recovery does when no outcome followed.
  on_unknown    text not null,
  trigger       text not null,
  started_at    timestamptz not null,
  constraint intent_pkey primary key (tenant_id, delivery_id),
  constraint intent_on_unknown check (on_unknown in ('retry', 'hold'))
);
-- Intents are removed by the ids of many deliveries at a time, of whichever tenants.
create index intent_delivery on intent (delivery_id);
select angarium_isolate('intent');
grant select on intent to angarium_app;
grant select, insert, update, delete on intent to angarium_worker;

-- ── Ordering keys ───────────────────────────────────────────────────────────────────────────
-- Deliveries with the same key go one after another.

-- The turn of each key: that delivery alone is in the queue or in a worker's hand. To join a key's line or to take a turn
-- on is to hold this row, so all that happens to a key happens one after another. A key without an open delivery has no
-- row.
create table ordering (
  tenant_id   uuid not null,
  key         text not null,
  delivery_id uuid not null,
  constraint ordering_pkey primary key (tenant_id, key),
  constraint ordering_one_turn unique (tenant_id, delivery_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);
select angarium_isolate('ordering');
grant select, insert, update, delete on ordering to angarium_app, angarium_worker;

-- The line behind it. A place is given while the key is held: the line is in the order of the commits, whatever the
-- clocks of the nodes say.
create table ordering_line (
  tenant_id   uuid not null,
  key         text not null,
  place       bigint not null generated always as identity,
  delivery_id uuid not null,
  due_at      timestamptz not null,
  priority    smallint not null,
  constraint ordering_line_pkey primary key (tenant_id, key, place),
  constraint ordering_line_one_place unique (tenant_id, delivery_id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
select angarium_isolate('ordering_line');
grant select, insert, update, delete on ordering_line to angarium_app, angarium_worker;

-- ── Follow-ups ──────────────────────────────────────────────────────────────────────────────

-- Ends of deliveries that scripts are still to be asked about, written by the transaction that ended them; only of
-- tenants with such scripts. The messages that follow an end are written in the transaction that takes it out of here,
-- as its tenant.
create table follow_up (
  tenant_id   uuid not null,
  delivery_id uuid not null,
  message_id  uuid not null,
  -- The end that it reached.
  state       text not null,
  ended_at    timestamptz not null default now(),
  -- The time of the next look.
  due_at      timestamptz not null default now(),
  tries       integer not null default 0,
  constraint follow_up_pkey primary key (tenant_id, delivery_id, state),
  constraint follow_up_tenant foreign key (tenant_id) references tenant
);
create index follow_up_due on follow_up (due_at);
select angarium_isolate('follow_up');
grant select, insert, delete on follow_up to angarium_app;
grant select, insert, update, delete on follow_up to angarium_worker;
