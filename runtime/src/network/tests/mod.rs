//! Tests on real network namespaces, which they make themselves. They need root, `ip` and `tc` of iproute2, and a
//! kernel with veth, bridge, tun and macvlan.

mod bridge;
mod discovery;
mod kinds;
mod lab;
mod live;
mod rollback;
mod tc;
mod traffic;
