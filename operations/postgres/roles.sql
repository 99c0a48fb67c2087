-- The roles of docs/operators.md, "Database", for a cluster whose administrator runs `angarium migrate` (compose.yaml).
-- The PostgreSQL image runs this once, when its volume is empty. It needs psql 15 or newer.
\getenv password SERVE_PASSWORD
create role angarium_app nologin;
create role angarium_worker nologin;
create role angarium_serve login password :'password' in role angarium_app, angarium_worker;
