-- A delivery's id is its own among all tenants, and each intent is written and removed while its delivery waits: one
-- index in place of two.
alter table intent drop constraint intent_pkey;
drop index intent_delivery;
alter table intent add primary key (delivery_id);
