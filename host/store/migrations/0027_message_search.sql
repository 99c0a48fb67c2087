-- Messages are found by recipient, batch, members of their metadata, connection and code. Each search reads one of these
-- indexes, or walks from the newest message on.

alter table message
  -- The batch that it came in with.
  add column batch_id uuid,
  -- Hashes of the tenant, the name and the value of each member of `metadata` at its top.
  add column metadata_hashes bigint[],
  -- A column, since row-level security keeps an index from functions that are not known to be leakproof.
  add column recipient_key text generated always as (angarium_comparable(recipient)) stored;
grant update (metadata_hashes) on message to angarium_app;
-- A waiting message is moved.
grant update (send_at, expires_at, priority) on message to angarium_app;

create index message_recipient on message (tenant_id, recipient_key, id);
create index message_batch on message (tenant_id, batch_id, id) where batch_id is not null;
create index message_scheduled on message (tenant_id, send_at) where send_at is not null;
create index message_state on message (tenant_id, state, id) where state is not null;

create index delivery_connection on delivery (tenant_id, connection_id, id);
create index delivery_delivered on delivery (tenant_id, id) where state = 'delivered';
-- Codes are looked for where something went wrong.
create index delivery_code on delivery (tenant_id, code, id) where state not in ('sent', 'delivered');
create index delivery_unified_code on delivery (tenant_id, unified_code, id) where state not in ('sent', 'delivered');

-- An attachment is read piece by piece: without compression a piece is found without the ones before it.
do $$
declare
  name text;
begin
  for name in select 'attachment' union all select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'attachment'::regclass
  loop
    execute format('alter table %I alter column content set storage external', name);
  end loop;
end $$;
