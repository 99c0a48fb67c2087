-- What is looked at of a message whose contents are large: its body with excerpts in place of the contents. Memory holds
-- that; the whole is read when a request is made of it. Null where the contents are short.
alter table message add column excerpt bytea;
grant update (excerpt) on message to angarium_app;
