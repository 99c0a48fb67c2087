//! One tenant does everything at once that could hurt; another does not notice.
