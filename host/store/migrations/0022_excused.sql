-- Attempts that failed for what the message, its recipient or the gateway did wrong: they say nothing of the connection, so
-- its health leaves them out. A node of an older release counts none, which is how it told a connection's health before.
alter table stat_delta add column excused bigint not null default 0;
alter table stat_rollup add column excused bigint not null default 0;
