//! The provider components, in their sandbox.
