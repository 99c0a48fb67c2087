-- Messages and what became of them: the ledger.
--
-- Ids are UUIDv7, so a range of ids is a range of time. The ledger's tables are partitioned by the message's or the
-- delivery's id, a week a table: a look-up by id meets one partition, and retention drops whole tables.

-- The number of the current transaction, by which facts are folded into the statistics (0007).
-- `angarium_transactions_align` may replace it.
create function angarium_transaction() returns bigint language sql stable
  as $$ select pg_current_xact_id()::text::bigint $$;

-- A recipient as it is compared: the domain of a mail address in lower case, anything else as it is.
create function angarium_comparable(recipient text) returns text language sql immutable as $$
  select case when recipient ~ '^[^/@]+@[^/@]+$'
    then split_part(recipient, '@', 1) || '@' || lower(split_part(recipient, '@', 2))
    else recipient
  end
$$;

create table message (
  tenant_id         uuid not null,
  id                uuid not null,
  -- The batch that it came in with.
  batch_id          uuid,
  channel           text not null,
  recipient         text not null,
  -- A column, since row-level security keeps an index from functions that are not known to be leakproof.
  recipient_key     text generated always as (angarium_comparable(recipient)) stored,
  priority          smallint not null,
  reference         text,
  ordering_key      text,
  -- The connection that it asks for.
  connection_id     uuid,
  created_at        timestamptz not null,
  send_at           timestamptz,
  expires_at        timestamptz,
  -- The message as JSON, kept as bytes: JSONB reorders keys, and a webhook's body is signed.
  body              bytea not null,
  -- The body with excerpts in place of large contents: what memory holds and lists show. The whole is read when a request
  -- is made of it. Null where the contents are short.
  excerpt           bytea,
  -- Since then there is no recipient, content or attachment any more.
  content_purged_at timestamptz,
  -- How its channels follow each other, as JSON, for a message that names several. The content of the second channel and
  -- of those after it is in `body`, which a purge takes away; this stays.
  legs              jsonb,
  -- The combined state of its legs; null while it is open, and for a message with one channel, whose delivery has it.
  state             text,
  -- The number of the transaction that wrote it.
  written_in        bigint default angarium_transaction(),
  constraint message_pkey primary key (tenant_id, id),
  constraint message_priority check (priority between 0 and 3),
  constraint message_state_is_an_end check (state in ('sent', 'delivered', 'failed', 'bounced', 'expired', 'canceled',
    'suppressed', 'unroutable', 'unknown')),
  constraint message_state_of_legs check (state is null or legs is not null)
) partition by range (id);
-- Searches, each in the order of pages. A message pays for those of its attributes that it has. An index of a column that
-- is never null is partial nevertheless: a look-up by id would else take it for its other columns, and read all of a
-- tenant.
create index message_recipient on message (tenant_id, recipient_key, id) where recipient_key is not null;
create index message_channel on message (tenant_id, channel, id) where channel is not null;
create index message_reference on message (tenant_id, reference, id) where reference is not null;
create index message_batch on message (tenant_id, batch_id, id) where batch_id is not null;
create index message_scheduled on message (tenant_id, send_at) where send_at is not null;
create index message_state on message (tenant_id, state, id) where state is not null;
create index message_open_legs on message (tenant_id, id) where legs is not null and state is null;
-- The facts that are not folded yet.
create index message_written_in on message (written_in);
select angarium_isolate('message');
grant select, insert on message to angarium_app;
-- The combined state of legs, the change of a waiting message, and the purge of a content.
grant update (state, send_at, expires_at, priority, recipient, body, excerpt, content_purged_at) on message
  to angarium_app;
grant select, insert, update, delete on message to angarium_worker;

-- Messages by the members of their metadata. A table of its own, since row-level security keeps a GIN index from its
-- operators.
create table message_metadata (
  tenant_id  uuid not null,
  message_id uuid not null,
  -- Of the tenant, the member's name and its value.
  hash       bigint not null,
  constraint message_metadata_pkey primary key (tenant_id, message_id, hash)
) partition by range (message_id);
create index message_metadata_hash on message_metadata (tenant_id, hash, message_id);
select angarium_isolate('message_metadata');
grant select, insert, delete on message_metadata to angarium_app;
grant select, insert, update, delete on message_metadata to angarium_worker;

-- Messages by those of their channels that are not the first, which is in `message`.
create table message_further_channel (
  tenant_id  uuid not null,
  message_id uuid not null,
  channel    text not null,
  constraint message_further_channel_pkey primary key (tenant_id, message_id, channel)
) partition by range (message_id);
create index message_further_channel_channel on message_further_channel (tenant_id, channel, message_id);
select angarium_isolate('message_further_channel');
grant select, insert on message_further_channel to angarium_app;
grant select, insert, update, delete on message_further_channel to angarium_worker;

create table attachment (
  tenant_id  uuid not null,
  -- The leg that it travels with.
  message_id uuid not null,
  number     integer not null,
  name       text not null,
  media_type text not null,
  content_id text,
  content    bytea not null,
  constraint attachment_pkey primary key (tenant_id, message_id, number)
) partition by range (message_id);
-- An attachment is read piece by piece: without compression a piece is found without the ones before it. Partitions
-- that are made later inherit it.
alter table attachment alter column content set storage external;
select angarium_isolate('attachment');
grant select, insert, delete on attachment to angarium_app;
grant select, insert, update, delete on attachment to angarium_worker;

-- A unique index cannot span partitions by time, so idempotency keys have a table of their own.
create table idempotency (
  tenant_id   uuid not null,
  key         text not null,
  fingerprint bytea not null,
  message_id  uuid not null,
  created_at  timestamptz not null,
  constraint idempotency_pkey primary key (tenant_id, key),
  constraint idempotency_key_length check (length(key) between 1 and 255)
);
-- Keys are forgotten after a day.
create index idempotency_created on idempotency (created_at);
select angarium_isolate('idempotency');
grant select, insert on idempotency to angarium_app;
grant select, insert, update, delete on idempotency to angarium_worker;

-- ── Deliveries ──────────────────────────────────────────────────────────────────────────────

-- The row of a message's only delivery is written when its first attempt is settled or it waits again; until then the
-- message and its lease or queue entry say all there is. That of one of several legs is written when the leg begins.
create table delivery (
  tenant_id       uuid not null,
  id              uuid not null,
  message_id      uuid not null,
  state           text not null,
  -- Number of the last attempt.
  attempts        integer not null,
  -- Attempts up to this number no longer count: a retry by hand begins anew.
  counted_from    integer not null default 0,
  -- Workers that died while they held it.
  deaths          smallint not null default 0,
  -- Of the last attempt, as are the columns down to its cost.
  connection_id   uuid,
  provider        text,
  external_id     text,
  code            text,
  unified_code    text,
  detail          text,
  cost_micros     bigint,
  cost_currency   text,
  -- The outcome for each recipient of a mail and its copies: a list of {address, role, outcome, code, detail, attempt,
  -- at}. A further attempt goes only to those that are `deferred`. Null where the state says all there is.
  recipients      jsonb,
  -- The recipient's actions (read, clicked …), beside the state.
  engagement      text[],
  next_attempt_at timestamptz,
  trigger         text,
  -- The lease under which it was last settled.
  lease_id        uuid,
  -- When a leg began; null for the delivery of a message with one channel.
  begun_at        timestamptz,
  -- Why it began, if another leg did before it.
  begun_by        text,
  -- Until when a receipt is waited for before the next leg begins.
  receipt_until   timestamptz,
  updated_at      timestamptz not null,
  finished_at     timestamptz,
  -- A person took it off the list of dead letters.
  discarded_at    timestamptz,
  discard_reason  text,
  -- The job that opened it again.
  replay_id       uuid,
  constraint delivery_pkey primary key (tenant_id, id),
  constraint delivery_state_is_known check (state in ('queued', 'sent', 'delivered', 'failed', 'bounced', 'expired',
    'canceled', 'suppressed', 'unroutable', 'unknown')),
  constraint delivery_finished check ((state = 'queued') = (finished_at is null)),
  constraint delivery_queued_is_due check (state <> 'queued' or next_attempt_at is not null),
  constraint delivery_begun_by check (begun_by in ('channel_failed', 'no_receipt')),
  constraint delivery_leg check (begun_at is not null or (begun_by is null and receipt_until is null))
) partition by range (id);
-- Searches, as those of messages.
create index delivery_state on delivery (tenant_id, state, id) where state is not null;
create index delivery_connection on delivery (tenant_id, connection_id, id) where connection_id is not null;
-- A plain success meets none of these.
create index delivery_code on delivery (tenant_id, code, id) where state not in ('sent', 'delivered');
create index delivery_unified_code on delivery (tenant_id, unified_code, id) where state not in ('sent', 'delivered');
-- The list of dead letters, and nothing but them.
create index delivery_dead on delivery (tenant_id, id)
  where state in ('failed', 'bounced', 'expired', 'unroutable', 'unknown') and discarded_at is null;
create index delivery_replay on delivery (tenant_id, replay_id) where replay_id is not null;
select angarium_isolate('delivery');
grant select, insert, update on delivery to angarium_app;
grant select, insert, update, delete on delivery to angarium_worker;

-- One row a try; nothing but a purge changes it.
create table attempt (
  tenant_id        uuid not null,
  delivery_id      uuid not null,
  number           integer not null,
  id               uuid not null,
  trigger          text not null,
  channel          text not null,
  -- What was asked; null where nobody could be.
  connection_id    uuid,
  provider         text,
  provider_version text,
  provider_digest  text,
  route_id         uuid,
  route_version    integer,
  -- The ordered candidates with scores and reasons, as JSON.
  plan             text,
  started_at       timestamptz not null,
  finished_at      timestamptz not null,
  status           integer,
  code             text,
  unified_code     text,
  disposition      text not null,
  detail           text,
  -- What the provider itself said of an answer, where an override understands it otherwise; and whose override it is.
  said             text,
  overridden_by    text,
  external_id      text,
  -- As in `delivery`, what this attempt came to.
  recipients       jsonb,
  cost_micros      bigint,
  cost_currency    text,
  units            integer,
  fallback_reason  text,
  plugin_micros    integer,
  plugin_memory    bigint,
  -- It failed for what the message, its recipient or the gateway did wrong: it says nothing of the connection.
  excused          boolean not null default false,
  -- The end that it brought its delivery to; null where the delivery went on, or had ended before.
  ended            text,
  written_in       bigint default angarium_transaction(),
  constraint attempt_pkey primary key (tenant_id, delivery_id, number),
  constraint attempt_number check (number > 0),
  constraint attempt_trigger check (trigger in ('scheduled', 'retry', 'fallback', 'manual', 'recovery')),
  constraint attempt_disposition check (disposition in ('accepted', 'rejected_permanent', 'rejected_transient',
    'throttled', 'auth_failed', 'not_sent', 'unknown')),
  constraint attempt_overridden_by check (overridden_by in ('route', 'tenant')),
  constraint attempt_ended_is_an_end check (ended in ('sent', 'delivered', 'failed', 'bounced', 'expired', 'canceled',
    'suppressed', 'unroutable', 'unknown'))
) partition by range (delivery_id);
-- A receipt that does not bring the delivery's id back finds it so. Only attempts with such an id pay for it.
create index attempt_external_id on attempt (tenant_id, external_id) where external_id is not null;
create index attempt_written_in on attempt (written_in);
select angarium_isolate('attempt');
-- A purge of content takes these.
grant select, update (detail, recipients) on attempt to angarium_app;
grant select, insert, update, delete on attempt to angarium_worker;

-- Changes of a delivery's state that no attempt made: by a receipt, by a person, or because another leg ended it; and
-- the beginning of each further leg. The other columns are those of the delivery's last attempt.
create table transition (
  tenant_id     uuid not null,
  delivery_id   uuid not null,
  -- Null: a further leg begins.
  left_state    text,
  state         text not null,
  channel       text not null,
  connection_id uuid,
  provider      text,
  route_id      uuid,
  route_version integer,
  unified_code  text,
  written_in    bigint not null default angarium_transaction(),
  constraint transition_state_is_known check (state in ('queued', 'sent', 'delivered', 'failed', 'bounced', 'expired',
    'canceled', 'suppressed', 'unroutable', 'unknown'))
) partition by range (delivery_id);
-- Retention deletes those of a delivery.
create index transition_delivery on transition (tenant_id, delivery_id);
create index transition_written_in on transition (written_in);
select angarium_isolate('transition');
grant select, insert on transition to angarium_app;
grant select, insert, update, delete on transition to angarium_worker;

-- The outbox. An event that is not a message's says whose it is; its `message_id` is its own id, so that it stands in the
-- partition of its time.
create table event (
  tenant_id     uuid not null,
  message_id    uuid not null,
  id            uuid not null,
  delivery_id   uuid,
  connection_id uuid,
  type          text not null,
  at            timestamptz not null,
  -- JSON.
  data          text,
  constraint event_pkey primary key (tenant_id, message_id, id)
) partition by range (message_id);
-- A tenant's events in the order of time: an event's id is a UUIDv7.
create index event_time on event (tenant_id, id);
select angarium_isolate('event');
-- A purge of content takes members of `data`.
grant select, insert, update (data) on event to angarium_app;
grant select, insert, update, delete on event to angarium_worker;

-- ── Receipts ────────────────────────────────────────────────────────────────────────────────

-- Every receipt of a delivery, once: a repetition has the same hash.
create table receipt (
  tenant_id     uuid not null,
  delivery_id   uuid not null,
  kind          text not null,
  hash          bytea not null,
  connection_id uuid not null,
  external_id   text,
  recipient     text,
  -- By the service's clock.
  at            timestamptz,
  received_at   timestamptz not null,
  code          text not null,
  unified_code  text not null,
  message       text not null,
  -- JSON.
  detail        text not null,
  -- The state that the delivery took by it; null where it changed nothing.
  state         text,
  constraint receipt_pkey primary key (tenant_id, delivery_id, kind, hash),
  constraint receipt_hash_is_sha256 check (octet_length(hash) = 32)
) partition by range (delivery_id);
select angarium_isolate('receipt');
-- A purge of content takes these.
grant select, insert, update (recipient, message, detail) on receipt to angarium_app;
grant select, insert, update, delete on receipt to angarium_worker;

-- Receipts whose delivery is not known yet, or is in a worker's hand: they wait for its outcome.
create table receipt_pending (
  tenant_id     uuid not null,
  connection_id uuid not null,
  kind          text not null,
  hash          bytea not null,
  delivery_id   uuid,
  external_id   text,
  recipient     text,
  at            timestamptz,
  received_at   timestamptz not null,
  code          text not null,
  unified_code  text not null,
  message       text not null,
  detail        text not null,
  -- The time of the next look.
  look_at       timestamptz not null default now(),
  constraint receipt_pending_pkey primary key (tenant_id, connection_id, kind, hash),
  constraint receipt_pending_hash_is_sha256 check (octet_length(hash) = 32)
);
create index receipt_pending_look on receipt_pending (look_at);
select angarium_isolate('receipt_pending');
grant select, insert on receipt_pending to angarium_app;
grant select, insert, update, delete on receipt_pending to angarium_worker;

-- The legs whose receipt is waited for.
create table receipt_watch (
  tenant_id   uuid not null,
  delivery_id uuid not null,
  message_id  uuid not null,
  due_at      timestamptz not null,
  constraint receipt_watch_pkey primary key (tenant_id, delivery_id)
);
create index receipt_watch_due on receipt_watch (due_at);
select angarium_isolate('receipt_watch');
grant select, insert, update, delete on receipt_watch to angarium_app, angarium_worker;

-- ── Legs and recipients ─────────────────────────────────────────────────────────────────────
-- A message may name several channels: each is a leg, and a leg is a delivery. Leg n has the message's UUID with n in its
-- lowest four bits, which are zero in a message's own.

-- The channel of a message's leg.
create function angarium_leg_channel(legs jsonb, channel text, delivery_id uuid) returns text
  language sql immutable parallel safe
  as $$
    select coalesce(legs -> 'legs' -> ('x' || right(delivery_id::text, 1))::bit(4)::int ->> 'channel', channel)
  $$;

-- The last id that a leg of this message could have.
create function angarium_last_leg(message_id uuid) returns uuid language sql immutable parallel safe
  as $$ select (left(message_id::text, 35) || 'f')::uuid $$;

-- Whether this leg's end is the message's own, so that a person has to look at it: not where another channel followed, or
-- served. It is so for the delivery of a message with one channel.
create function angarium_leg_counts(tenant uuid, leg uuid, message uuid, begun_at timestamptz) returns boolean
  language sql stable parallel safe
  as $$
    select begun_at is null or exists (
      select from message m where m.tenant_id = tenant and m.id = message and (m.legs ->> 'mode' = 'all' or (
        m.state in ('failed', 'bounced', 'expired', 'unroutable', 'unknown') and not exists (
          select from delivery later
          where later.tenant_id = tenant and later.id > leg and later.id <= angarium_last_leg(message)))))
  $$;

-- The state of a delivery that is canceled: a mail that its main recipient has was sent, whatever became of its copies.
create function angarium_canceled_state(recipients jsonb) returns text language sql immutable as $$
  select case when recipients @> '[{"role": "to", "outcome": "accepted"}]' then 'sent' else 'canceled' end
$$;

-- The recipients of a delivery of which nothing more is tried.
create function angarium_recipients_canceled(recipients jsonb) returns jsonb language sql immutable as $$
  select jsonb_agg(
    case when recipient ->> 'outcome' = 'deferred'
      then recipient || jsonb_build_object('outcome', 'refused', 'detail', (recipient ->> 'detail') || '; it is not tried again')
      else recipient
    end order by place)
  from jsonb_array_elements(recipients) with ordinality as t (recipient, place)
$$;

-- ── Partitions ──────────────────────────────────────────────────────────────────────────────

-- The partitioned tables, in the order in which a week of them is dropped: the messages first.
create function angarium_ledger_tables() returns text[] language sql immutable parallel safe
  as $$
    select array['message', 'message_metadata', 'message_further_channel', 'attachment', 'delivery', 'attempt', 'event',
      'receipt', 'transition']
  $$;

-- The least id of this time.
create function angarium_uuid_at(at timestamptz) returns uuid language sql immutable parallel safe
  as $$ select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid $$;

-- Weekly partitions from the week of `from_at` to that of `until_at`. A caller that is not alone holds the lease of the
-- task `partitions`. Rows are reached through the ledger's tables and their policies; nobody is granted a partition.
create function angarium_partitions_ensure(from_at timestamptz, until_at timestamptz) returns void
  language plpgsql security definer set search_path from current as $$
declare
  week timestamptz := date_trunc('week', from_at at time zone 'UTC') at time zone 'UTC';
  parent text;
  part text;
begin
  while week <= until_at loop
    foreach parent in array angarium_ledger_tables() loop
      part := format('%s_%s', parent, to_char(week at time zone 'UTC', 'IYYY"w"IW'));
      if to_regclass(format('%I', part)) is null then
        execute format('create table %I partition of %I for values from (%L) to (%L)',
          part, parent, angarium_uuid_at(week), angarium_uuid_at(week + interval '7 days'));
        execute format('alter table %I enable row level security, force row level security', part);
      end if;
    end loop;
    week := week + interval '7 days';
  end loop;
end $$;
revoke execute on function angarium_partitions_ensure from public;
grant execute on function angarium_partitions_ensure to angarium_worker;

-- The default partitions take what no week was made for: a late partition loses nothing.
do $$
declare
  parent text;
begin
  foreach parent in array angarium_ledger_tables() loop
    execute format('create table %I partition of %I default', parent || '_default', parent);
    execute format('alter table %I enable row level security, force row level security', parent || '_default');
  end loop;
end $$;
select angarium_partitions_ensure(now() - interval '7 days', now() + interval '21 days');
