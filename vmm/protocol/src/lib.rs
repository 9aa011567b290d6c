//! What `hull-vmm` is told: the machine it makes ([`config`]), the control calls it takes while the machine lives
//! ([`control`]), and what it leaves behind when the machine has ended ([`outcome`]). [`socket`] carries the calls.

pub mod config;
pub mod control;
pub mod outcome;
pub mod socket;
