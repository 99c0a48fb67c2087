//! Rules and scripts share a budget, and what a key may not read it does not see.
