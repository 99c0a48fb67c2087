//! What is refused at acceptance, and what is one message.
