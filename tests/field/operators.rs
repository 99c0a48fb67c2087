//! Operators: secrets that cannot be opened, folders, providers.
