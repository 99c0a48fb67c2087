//! A secret goes where it was meant to go, and comes back nowhere.
