//! Every limit of the OpenAPI document is enforced, and a refusal costs little.
