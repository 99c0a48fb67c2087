-- Intents are removed by the ids of many deliveries at a time, of whichever tenants.
create index intent_delivery on intent (delivery_id);
