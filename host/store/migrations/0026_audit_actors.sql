-- An entry's actor is an API key, a user, a job, a command of an operating system's user, or the gateway itself.

do $$
declare
  name text;
begin
  -- The owner of a table sees its rows only while row-level security is not forced.
  alter table audit no force row level security;
  foreach name in array array['audit', 'operator_audit'] loop
    execute format('alter table %I add column actor_kind text, add column actor_id text', name);
    execute format('update %I set actor_kind = ''api_key'', actor_id = ''key_'' || replace(key_id::text, ''-'', '''') where key_id is not null', name);
    execute format('update %I set actor_kind = ''gateway'' where key_id is null', name);
    execute format('alter table %I alter column actor_kind set not null, drop column key_id', name);
    execute format('alter table %I add constraint %I check (actor_kind in (''api_key'', ''user'', ''job'', ''command_line'', ''gateway''))', name, name || '_actor_kind_check');
    -- Keys, users and jobs have ids; a command line and the gateway have none.
    execute format('alter table %I add constraint %I check ((actor_id is null) = (actor_kind in (''command_line'', ''gateway'')))', name, name || '_actor_id_check');
  end loop;
  alter table audit force row level security;
end $$;
