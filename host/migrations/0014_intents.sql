-- Intents are removed by the ids of many deliveries at a time, of whichever tenants.
alter table intent drop constraint intent_pkey, add primary key (delivery_id, tenant_id);
