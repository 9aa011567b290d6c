use super::*;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    Buffer, INDIRECT, NEXT, READ, TestDriver, WRITE, guest_memory,
};
use vm_memory::GuestAddress;

const SIZE: u16 = 16;

fn chain_of<'m>(memory: &'m GuestMemory, driver: &TestDriver) -> Chain<'m> {
    Ring::new(driver.queue(), false)
        .pop(memory)
        .unwrap()
        .unwrap()
}

#[test]
fn buffers_are_gathered_in_order_and_empty_ones_left_out() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, SIZE);
    driver.offer_chain(&[(0x1000, 12, READ), (0x9000, 0, READ), (0x2000, 30, READ)]);
    let mut pieces = Vec::new();
    assert_eq!(
        gather_readable(&memory, chain_of(&memory, &driver), &mut pieces),
        Ok(42)
    );
    let lengths: Vec<usize> = pieces.iter().map(VolatileSlice::len).collect();
    assert_eq!(lengths, [12, 30]);
}

#[test]
fn a_buffer_across_regions_is_in_pieces() {
    let memory =
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000)])
            .unwrap();
    let mut driver = TestDriver::new(&memory, 0, SIZE);
    driver.offer_chain(&[(0x1ff0, 0x20, WRITE)]);
    let mut pieces = Vec::new();
    assert_eq!(
        gather_writable(&memory, chain_of(&memory, &driver), &mut pieces),
        Ok(0x20)
    );
    assert_eq!(pieces.len(), 2);
}

/// What a chain is made of, and what the device makes of it.
struct Case {
    what: &'static str,
    /// Descriptors from the first on: buffer and next.
    descriptors: &'static [(Buffer, u16)],
    error: ChainError,
}

const MALFORMED: &[Case] = &[
    Case {
        what: "a loop",
        descriptors: &[((0x1000, 8, NEXT), 1), ((0x1000, 8, NEXT), 0)],
        error: ChainError::Endless,
    },
    Case {
        what: "a descriptor that leads to itself",
        descriptors: &[((0x1000, 0, NEXT), 0)],
        error: ChainError::Endless,
    },
    Case {
        what: "a next descriptor beyond the table",
        descriptors: &[((0x1000, 8, NEXT), SIZE)],
        error: ChainError::Endless,
    },
    Case {
        what: "more than 4 GiB",
        descriptors: &[((0, 0x9000, NEXT), 1), ((0x1000, u32::MAX, READ), 0)],
        error: ChainError::Endless,
    },
    Case {
        what: "a buffer outside memory",
        descriptors: &[((0x4000_0000, 8, READ), 0)],
        error: ChainError::OutsideMemory,
    },
    Case {
        what: "a buffer that ends outside memory",
        descriptors: &[((0xfff8, 16, READ), 0)],
        error: ChainError::OutsideMemory,
    },
    Case {
        what: "a buffer at the end of the address space",
        descriptors: &[((u64::MAX - 3, 16, READ), 0)],
        error: ChainError::OutsideMemory,
    },
    Case {
        what: "a buffer to be written",
        descriptors: &[((0x1000, 8, NEXT), 1), ((0x1000, 8, WRITE), 0)],
        error: ChainError::Direction,
    },
    Case {
        what: "an indirect table with a broken length",
        descriptors: &[((0x1000, 17, INDIRECT), 0)],
        error: ChainError::Endless,
    },
    Case {
        what: "an empty indirect table",
        descriptors: &[((0x1000, 0, INDIRECT), 0)],
        error: ChainError::Endless,
    },
    Case {
        what: "an indirect table outside memory",
        descriptors: &[((0x4000_0000, 32, INDIRECT), 0)],
        error: ChainError::Endless,
    },
    Case {
        what: "an indirect table with more entries than a queue can have",
        descriptors: &[((0x1000, 16 * 0x10000, INDIRECT), 0)],
        error: ChainError::Endless,
    },
    Case {
        what: "an indirect table in itself",
        descriptors: &[((0, 16, INDIRECT), 0)],
        error: ChainError::Endless,
    },
];

#[test]
fn malformed_chains_are_errors() {
    for case in MALFORMED {
        let memory = guest_memory(0x10000);
        let mut driver = TestDriver::new(&memory, 0, SIZE);
        for (index, (buffer, next)) in (0..).zip(case.descriptors) {
            driver.set_descriptor(index, *buffer, *next);
        }
        driver.offer(0);
        let mut pieces = Vec::new();
        let result = gather_readable(&memory, chain_of(&memory, &driver), &mut pieces);
        assert_eq!(result, Err(case.error), "{}", case.what);
        assert!(pieces.is_empty(), "{}", case.what);
    }
}

#[test]
fn a_long_indirect_chain_is_refused() {
    let memory = guest_memory(0x20000);
    let mut driver = TestDriver::new(&memory, 0, SIZE);
    let count = 1024_u16;
    for index in 0..count {
        let flags = if index + 1 < count { NEXT } else { READ };
        driver.write_descriptor(
            0x10000 + 16 * u64::from(index),
            (0x1000, 1, flags),
            index + 1,
        );
    }
    driver.offer_chain(&[(0x10000, 16 * u32::from(count), INDIRECT)]);
    let mut pieces = Vec::new();
    let result = gather_readable(&memory, chain_of(&memory, &driver), &mut pieces);
    assert_eq!(result, Err(ChainError::TooManyBuffers));
    // One descriptor less is the most.
    driver.write_descriptor(0x10000 + 16 * u64::from(count - 2), (0x1000, 1, READ), 0);
    assert_eq!(
        gather_readable(&memory, chain_of(&memory, &driver), &mut pieces),
        Ok(1023)
    );
}

#[test]
fn a_request_comes_before_its_answer() {
    let memory = guest_memory(0x10000);
    let mut driver = TestDriver::new(&memory, 0, SIZE);
    driver.offer_chain(&[(0x1000, 2, READ), (0x2000, 6, READ), (0x3000, 1, WRITE)]);
    let exchange = split(&memory, chain_of(&memory, &driver)).unwrap();
    assert_eq!((exchange.request.len(), exchange.answer.len()), (2, 1));
    let mut driver = TestDriver::new(&memory, 0x8000, SIZE);
    driver.offer_chain(&[(0x3000, 1, WRITE), (0x1000, 2, READ)]);
    assert_eq!(
        split(&memory, chain_of(&memory, &driver)).unwrap_err(),
        ChainError::Direction
    );
}
