-- With each delivery of a lease, the number of its last attempt when the lease began; null for what was just
-- accepted, which has none. A delivery that has a later one was settled under the lease: it may have been claimed
-- again since, and is not the lost worker's any more.
alter table lease add column attempts integer[];
