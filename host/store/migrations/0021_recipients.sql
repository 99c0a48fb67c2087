-- What became of each recipient of a delivery that goes to several (a mail and its copies), and what an attempt came to
-- for each: a list of {address, role, outcome, code, detail, attempt, at}. Null where the state says all there is.
--
-- A further attempt goes only to those that are `deferred`: nobody that has the mail gets it again.
alter table delivery add column recipients jsonb;
alter table attempt add column recipients jsonb;
grant update (recipients) on attempt to angarium_app;

-- The state of a delivery that is canceled: a mail that its main recipient has was sent, whatever became of its copies.
create function angarium_canceled_state(recipients jsonb) returns text language sql immutable as $$
  select case when recipients @> '[{"role": "to", "outcome": "accepted"}]' then 'sent' else 'canceled' end
$$;

-- The recipients of a delivery of which nothing more is tried.
create function angarium_recipients_canceled(recipients jsonb) returns jsonb language sql immutable as $$
  select jsonb_agg(
    case when recipient ->> 'outcome' = 'deferred'
      then recipient || jsonb_build_object('outcome', 'refused', 'detail', (recipient ->> 'detail') || '; it is not tried again')
      else recipient
    end order by place)
  from jsonb_array_elements(recipients) with ordinality as t (recipient, place)
$$;

-- A recipient as it is compared: the domain of a mail address in lower case, anything else as it is.
create function angarium_comparable(recipient text) returns text language sql immutable as $$
  select case when recipient ~ '^[^/@]+@[^/@]+$'
    then split_part(recipient, '@', 1) || '@' || lower(split_part(recipient, '@', 2))
    else recipient
  end
$$;
