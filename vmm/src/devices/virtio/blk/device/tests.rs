use std::fs::File;
use std::os::fd::OwnedFd;

use tempfile::NamedTempFile;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::virtio::blk::DiskError;
use crate::devices::virtio::device::ActiveQueue;
use crate::devices::virtio::test_driver::{
    READ, TestDriver, TestInterrupt, WRITE, assert_refuses_a_queue_that_was_not_enabled,
    eventually, guest_memory, read_bytes,
};
use crate::memory::SharedMemory;

fn file(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn device(bytes: u64, readonly: bool, queues: u16) -> Blk {
    let descriptor = file(bytes).reopen().unwrap().into();
    Blk::new(Disk::new(descriptor, readonly).unwrap(), "root", queues).unwrap()
}

#[test]
fn the_driver_is_told_of_size_shape_and_abilities() {
    let blk = device(1_000_000, false, 3);
    let mut config = [0xff; CONFIG + 4];
    blk.read_config(0, &mut config);
    assert_eq!(config[..8], 1953_u64.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[34..36], 3_u16.to_le_bytes());
    assert_eq!(config[CONFIG..], [0xff; 4], "beyond its end");
    blk.read_config(u64::MAX, &mut config);
    assert_eq!(blk.queue_sizes(), [QUEUE_SIZE; 3]);
    let has = |blk: &Blk, bit: u32| blk.features() & 1 << bit != 0;
    assert!(has(&blk, VIRTIO_BLK_F_DISCARD) && !has(&blk, VIRTIO_BLK_F_RO));
    let blk = device(512, true, 1);
    assert!(!has(&blk, VIRTIO_BLK_F_WRITE_ZEROES) && has(&blk, VIRTIO_BLK_F_RO));
}

#[test]
fn each_queue_works_again_after_a_reset_and_one_that_is_not_used_is_left() {
    let mut blk = device(1 << 20, false, 3);
    for round in 0..2 {
        let memory = guest_memory(0x10_0000);
        let mut drivers = [0, 0x8000].map(|base| TestDriver::new(&memory, base, 64));
        let mut unused = TestDriver::new(&memory, 0x1_0000, 64).queue();
        unused.set_ready(false);
        let interrupt = Arc::new(TestInterrupt::default());
        let kick = || EventFd::new(EFD_NONBLOCK).unwrap();
        let kicks = [kick(), kick()];
        let mut queues: Vec<ActiveQueue> = drivers
            .iter()
            .zip(&kicks)
            .map(|(driver, kick)| ActiveQueue {
                queue: driver.queue(),
                kick: kick.try_clone().unwrap(),
            })
            .collect();
        queues.push(ActiveQueue {
            queue: unused,
            kick: kick(),
        });
        blk.activate(Activation {
            memory: SharedMemory::new(memory.clone()),
            features: 0,
            queues,
            interrupt: interrupt.clone(),
        })
        .unwrap();
        for ((driver, kick), index) in drivers.iter_mut().zip(&kicks).zip(0..) {
            let status = 0x5000 + u64::from(index);
            driver.offer_chain(&[
                (0x4000, 16, READ),
                (0x2_0000, 512, WRITE),
                (status, 1, WRITE),
            ]);
            kick.write(1).unwrap();
            let mut used = None;
            eventually("the request is done", || {
                used = driver.take_used();
                used.is_some()
            });
            assert_eq!(used.unwrap().1, 513, "round {round}");
            assert_eq!(read_bytes(&memory, status, 1), [0]);
            eventually("an interrupt", || interrupt.count(index) > 0);
        }
        blk.reset();
    }
}

#[test]
fn a_queue_that_was_not_enabled_is_refused() {
    assert_refuses_a_queue_that_was_not_enabled(&mut device(512, false, 1));
}

#[test]
fn what_is_no_disk_is_refused() {
    let try_disk = |descriptor: OwnedFd, readonly| Disk::new(descriptor, readonly).err();
    let directory = File::open("/").unwrap().into();
    assert!(matches!(try_disk(directory, true), Some(DiskError::Kind)));
    let null = File::open("/dev/null").unwrap().into();
    assert!(matches!(try_disk(null, true), Some(DiskError::Kind)));
    let small = file(511).reopen().unwrap().into();
    assert!(matches!(
        try_disk(small, false),
        Some(DiskError::Empty(511))
    ));
    let disk = file(512);
    let reader = || OwnedFd::from(File::open(disk.path()).unwrap());
    assert!(matches!(try_disk(reader(), false), Some(DiskError::Access)));
    assert!(try_disk(reader(), true).is_none());
    let disk = || Disk::new(reader(), true).unwrap();
    assert!(matches!(
        Blk::new(disk(), &"x".repeat(21), 1),
        Err(BlkError::Name(21))
    ));
    for queues in [0, MAX_QUEUES + 1] {
        assert!(matches!(
            Blk::new(disk(), "", queues),
            Err(BlkError::Queues(_))
        ));
    }
}
