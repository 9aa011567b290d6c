//! The cases, one module for each topic. They need root, a KVM that runs Linux, and `hull` in the PATH; the test bed
//! (`cargo xtask testbed test`) is a machine that has these.

mod bad_input;
mod cgroup;
mod cni;
mod command_line;
mod containerd;
mod cri;
mod crio;
mod deploy;
mod docker;
mod docker_daemon;
mod docker_options;
mod exec;
mod faults;
mod hooks;
mod inherited;
mod lifecycle;
mod load;
mod metrics;
mod nerdctl;
mod network;
mod network_answers;
mod network_datapath;
mod network_live;
mod network_many;
mod podman;
mod podman_commands;
mod podman_options;
mod podman_pods;
mod process;
mod rootfs;
mod sandbox;
mod stdio;
mod terminal;
mod uplinks;
