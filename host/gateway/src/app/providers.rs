//! Providers, which serve all tenants: a tenant sees its own quarantines, an operator those of all.

/// Returns the declared host patterns that are not granted.
pub fn not_granted(declared: &[String], granted: &[String]) -> Vec<String> {
    declared.iter().filter(|host| !granted.contains(host)).cloned().collect()
}
