//! What is particular to an architecture. There is one: x86-64.

pub mod x86_64;
