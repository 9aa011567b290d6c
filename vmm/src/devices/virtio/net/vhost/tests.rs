use std::fs::File;

use super::*;
use crate::devices::virtio::test_driver::{TestDriver, guest_memory};

/// Two pieces of memory with a hole between them.
fn memory_with_hole() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x20000), 0x10000)])
        .unwrap()
}

fn queue(size: u16, descriptors: u64, available: u64, used: u64) -> Queue {
    let mut queue = Queue::new(256).unwrap();
    queue.set_size(size);
    queue
        .try_set_desc_table_address(GuestAddress(descriptors))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(available))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
    queue.set_ready(true);
    queue
}

#[test]
fn the_kernel_is_told_of_all_memory() {
    let memory = memory_with_hole();
    let told = regions(&memory);
    assert_eq!(
        told.iter()
            .map(|region| (region.guest, region.size))
            .collect::<Vec<_>>(),
        [(0, 0x10000), (0x20000, 0x10000)]
    );
    let host = memory.get_host_address(GuestAddress(0x20000)).unwrap();
    assert_eq!(told[1].host, host.expose_provenance() as u64);
}

#[test]
fn a_ring_is_where_its_driver_put_it() {
    let memory = guest_memory(0x10000);
    let driver = TestDriver::new(&memory, 0x1000, 16);
    let queue = driver.queue();
    let address = ring_address(Ring::Transmit, &memory, &queue).unwrap();
    let base = host_address(&memory, 0, 1).unwrap();
    assert_eq!(address.index, 1);
    assert_eq!(
        [address.descriptors, address.available, address.used],
        [queue.desc_table(), queue.avail_ring(), queue.used_ring()].map(|part| base + part)
    );
}

#[test]
fn a_ring_that_is_not_in_memory_as_a_whole_is_refused() {
    let memory = memory_with_hole();
    let refused = |queue: &Queue| ring_address(Ring::Receive, &memory, queue).is_none();
    assert!(!refused(&queue(256, 0, 0x2000, 0x3000)));
    assert!(!refused(&queue(256, 0xf000, 0x20000, 0x2f000)));
    for (descriptors, available, used) in [
        (0xf010, 0x2000, 0x3000),
        (0, 0xfe00, 0x3000),
        (0, 0x2000, 0xf800),
        (0x18000, 0x2000, 0x3000),
        (0, 0x2000, 0x4000_0000),
        (0xffff_ffff_ffff_f000, 0x2000, 0x3000),
        (0, 0xffff_ffff_ffff_fffe, 0x3000),
    ] {
        assert!(
            refused(&queue(256, descriptors, available, used)),
            "{descriptors:#x} {available:#x} {used:#x}"
        );
    }
}

#[test]
fn what_is_not_vhost_net_is_refused() {
    let null = File::open("/dev/null").unwrap();
    let refused = VhostPairs::adopt(vec![null.into()]);
    assert!(matches!(
        refused.err(),
        Some(VhostError::Ioctl {
            operation: "VHOST_GET_FEATURES",
            ..
        })
    ));
}
