-- Events of a tenant in the order of time: an event's id is a UUIDv7.
create index event_time on event (tenant_id, id);
